"""A run: its settings, how it is built, trained, followed, stopped and kept on disk.

settings.py says what a run is asked for, build.py builds the run out of this, and run.py trains it. memory_plan.py finds
what fits in memory. observer.py says what can follow a run, recorder.py keeps its record, efficiency.py adds up its
time, and trackers/ are the places where its numbers can go while it trains. folder.py keeps its directory, and
model_folder.py writes the trained model.
"""
