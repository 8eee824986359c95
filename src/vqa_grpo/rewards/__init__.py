"""The scores of `scoring`, in the signature TRL calls reward functions with."""
