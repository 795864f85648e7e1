"""Measurements of the speed of a model (`vision bench`), its layers (`profile`), and a deployment (`plan`)."""
