"""The command line of lm-eval, which finds the model "samplers" because this package is imported before."""

from lm_eval.__main__ import cli_evaluate

if __name__ == "__main__":
    cli_evaluate()
