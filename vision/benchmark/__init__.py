"""How fast it is here, where the time goes, and what a site needs: `vision bench`, `vision profile`, `vision plan`.

The verbs are in `bench`, `profile` and `plan`. What they compute with is pure and apart from what runs: `samples`,
`conditions`, `document`, `compare`, `model`, `advice`, `nodes`.
"""
