"""What data, training and evaluation need to know about a model family, and how a model is loaded."""
