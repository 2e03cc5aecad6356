"""Search images by text or image: an index of features, and reranking by matching."""
