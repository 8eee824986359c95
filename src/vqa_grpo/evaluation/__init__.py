"""Predict with a model, score the predictions, compare two models on the same questions, decide which one stays."""
