"""`python -m minigpt4`: the command line, where `torchrun -m` wants a module."""

from minigpt4.cli import main

main()
