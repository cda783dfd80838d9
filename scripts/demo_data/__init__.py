"""Parts of ``make_demo_data.py``, which tells what the set is and why."""
