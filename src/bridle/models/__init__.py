"""Networks: encoder, predictor, tokenizer, estimator and their heads."""
