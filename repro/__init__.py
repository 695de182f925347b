"""Reference reproduction of three papers on class activation maps: EGA, DFG and ScoreCAM++."""

__version__ = "0.1.0"
