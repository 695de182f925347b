"""Reference reproduction of three papers on class activation maps: EGA, DFG and ScoreCAM++."""

import warnings

__version__ = "0.2.0"

# Captum asks tqdm for a notebook widget; the plain bar it falls back to is what batch runs want.
warnings.filterwarnings("ignore", message="IProgress not found")
