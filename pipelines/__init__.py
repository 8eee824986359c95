"""How the steps are wired into pipelines."""
