"""The embedded world: small drawn scenes of which everything is known, for demos and tests without a download.

vocabulary.py   the words: shapes, colours, textures, sizes, named kinds, relations, abstract words
scene.py        what is where in a scene, and the relations that follow from it
drawing.py      its picture
wording.py      its captions
norms.py        the ground truth of the words
world.py        all of it in the sources' own layouts
"""

from groundray.data.scenes.world import VERSION, World, write_world

__all__ = ["VERSION", "World", "write_world"]
