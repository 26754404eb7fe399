"""Image search by picture, by word, or by a mix of both; and why an image was found.

query.py       Search: start here
checkpoint.py  opens what can be searched with: an exported model, or a dual encoder of transformers
query_vector.py  the vector of a query, of those of its parts
towers.py      pictures and texts as vectors of one space
dual_encoder.py  the same, and match maps, of CLIP, SigLIP or ALIGN
index.py       vectors and thumbnails of a pool of images, built once and kept
compact.py     its vectors, sizes and ids in one file that is mapped into memory
image_ids.py   ids of many images: by row, and the row of an id
neighbours.py  nearest neighbours of a query: exact, or with FAISS in a large pool
knn.py         exact search, block by block
inverted_file.py  approximate search with FAISS
filters.py     which images may be found: by size, id or label
positions.py   features of the positions of a pool's images, made once and kept
rerank.py      ranks what vectors found again, by the match map
grid.py        many searches as a picture: one query over alpha, or images by words
grid_picture.py  what is drawn of them
named_image.py  an image that a command names: an id of the pool, or a picture file
explain.py     match maps of a text on a picture
calibration.py usual matches in a pool: the colour scale, and whether a word is in a picture
word_space.py  words on their principal axes, before and after grounding
suggestions.py  words to try on the page, which tell the pool's images apart
uploads.py     checks of uploaded pictures
upload_limits.py  limits of an upload
service.py     all of these, opened together
uses.py        marks of what a service answers from, which `groundray clean` keeps
http/          the service over HTTP, and its web page
"""
