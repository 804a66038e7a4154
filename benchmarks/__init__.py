"""The benchmark suite: drives the Router and the HTTP doors from outside."""
