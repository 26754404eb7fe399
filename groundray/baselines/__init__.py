"""Word vectors of other kinds of evidence, made from the same shards, that a model is compared with.

words.py                  the words of texts, which of them are frequent, and their vectors
shard_words.py            the words of shards, a row group at a time
log_bilinear.py           vectors of co-occurrences (GloVe's model), shared by the next two
glove.py                  words that stand near each other in captions
vico.py                   words that apply to the same object or picture, in scene graphs
word_images.py            the images of each word
image_encoder.py          feature maps of images, by a trunk or a trained visual stream
picturebook.py            a word as the mean of its images
bag_of_visual_words.py    a word as the visual words of its images
method.py                 what a method is, for its card
vector_file.py            the file of vectors and its card
watch.py                  what shows progress
"""
