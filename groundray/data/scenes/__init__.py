"""The embedded world: small drawn scenes with known ground truth, for demos and tests without a download.

vocabulary.py   the words: shapes, colours, textures, sizes, named kinds, relations, abstract words
scene.py        the objects of a scene, and their relations
drawing.py      the image of a scene
wording.py      the captions of a scene
ground_truth.py the norms of the words
world.py        the whole world on disk, in the layouts of the sources
"""

from groundray.data.scenes.world import VERSION, World, write_world

__all__ = ["VERSION", "World", "write_world"]
