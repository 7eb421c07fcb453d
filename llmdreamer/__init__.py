"""llmdreamer: does a language model make a better world model?"""

__version__ = "0.1.0"
