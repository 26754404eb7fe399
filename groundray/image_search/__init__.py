"""Image search: by picture, by word, or by a mix of both, and why a picture was found.

towers.py     pictures and texts as vectors of one space: the model's side
index.py      the vectors and thumbnails of a pool of images, made once and kept
nearest.py    the vectors of a pool that lie nearest to a query
query.py      Search: start here
matches.py    the match map of a text on a picture
space.py      the words on their principal axes, before and after grounding
uploads.py    pictures that somebody brings along
wire.py       the fields of requests and the shapes of answers
service.py    all of it over HTTP; page/ is what a browser shows of it
"""
