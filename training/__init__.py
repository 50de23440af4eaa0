"""The recipe of nano: artwork → scenes and captions → tokenizer → VQGAN → transformer → checkpoint → scores."""
