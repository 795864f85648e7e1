"""Expected texts of messages. Each module contains the texts of one area in a table `ROWS`.

No other test contains full texts.
"""
