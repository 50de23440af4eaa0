"""What is said of a VQGAN that computes no numbers, whatever computes it: NaN would be a black picture or code 0."""

NO_PIXELS = "pixels that are not numbers came out of the VQGAN; its weights are broken: copy or convert them again"
NO_CODES = "the VQGAN's codes of this picture are not numbers; its weights are broken: copy or convert them again"
