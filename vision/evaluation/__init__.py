"""How right the program is: what a pipeline finds in a labelled video, against what is there (docs/evaluation.md).

==============  ====================================================================================
mot.py          MOTChallenge files: the truth, with everything that is wrong with it; results
passes.py       the video read once for its length, and once through the site's own pipeline
detection.py    precision, recall and average precision of boxes
tracks.py       MOTA, IDF1, HOTA and identity switches, by TrackEval
crossings.py    who crossed which line, from the true tracks alone
report.py       the table and the JSON
plots.py        curves and time lines, by matplotlib
annotated.py    the annotated video
command.py      `vision eval`
==============  ====================================================================================
"""
