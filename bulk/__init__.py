"""Captions, answers, embeddings and indexes of whole corpora, on Ray Data and FAISS; no server takes part."""
