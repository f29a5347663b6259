"""Where texts come from: the corpus builder and the loader of text files and TFDS datasets."""
