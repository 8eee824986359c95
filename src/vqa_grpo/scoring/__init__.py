"""Pure functions that score an answer and its reasoning steps. The rewards and the evaluation both call them."""
