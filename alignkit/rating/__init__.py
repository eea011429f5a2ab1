"""Blind ratings by people: a page that shows what several systems wrote, a store that loses no answer, and statistics.

    alignkit rate look-ahead=runs/look_ahead/ppo seq2seq=runs/look_ahead/seq2seq --gold --output ratings
    alignkit rate --summary ratings

`systems` matches the systems' responses, `questions` holds what is asked, `study` the order in which each rater sees
them, `store` keeps the answers, `page` shows and asks, `statistics` computes from arrays, and `summary` reports.
"""
