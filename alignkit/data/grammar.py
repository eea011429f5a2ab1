"""A small grammar of our own: neutral openings about films and meals, and opinions that follow them.

Each line of a rule is one choice; `{name}` stands for another rule. The opinions of both classes are built alike and
share most of their words, so that a classifier has to read more than the length, and some say "not".
"""

import random
import re

_RULES_TEXT = {
    "opening": """
        {when} {who} watched {film} {where}.
        {when} {who} went to see {film} {where}.
        {when} {who} saw {film} with {company}.
        {when} {who} had {meal} {place}.
        {when} {who} tried {dish} {place}.
        {when} {who} met {company} for {meal} {place}.
    """,
    "when": """
        On {day}
        On {day} {daytime}
        Last {day}
        Last {season}
        Two weeks ago
        After {event}
        Before {event}
        During {event}
    """,
    "day": "Monday\nTuesday\nWednesday\nThursday\nFriday\nSaturday\nSunday",
    "daytime": "morning\nafternoon\nevening\nnight",
    "season": "winter\nspring\nsummer\nautumn\nmonth\nweek",
    "event": "work\nschool\nthe match\nthe concert\nthe holidays\nthe meeting\nthe long drive\nthe party",
    "who": "we\nI\nthey\nmy brother\nmy sister and I\nour class\nmy parents\nthe family\nsome of us\na friend and I",
    "company": "my aunt\nan old friend\nthe neighbours\nsome colleagues\nmy cousin\nour teacher\ntwo friends\nmy uncle",
    "film": "{a_film}\n{a_film} about {topic}",
    "a_film": """
        a new comedy
        a French thriller
        an old western
        a short cartoon
        the latest drama
        a silent film
        a long documentary
        the second part of a crime story
        a musical
        a science fiction film
    """,
    "topic": """
        a lost dog
        two detectives
        life on a farm
        a journey to the moon
        a family of bakers
        the sea
        a missing train
        a young singer
        three thieves
        a village in the mountains
    """,
    "where": """
        at the cinema
        at home
        in the small theatre by the river
        in town
        at the festival
        on the big screen
        in the old hall
        at a friend's house
    """,
    "meal": "lunch\ndinner\nbreakfast\npizza\ncoffee and cake\na late supper\na quick bite\nnoodles\nsandwiches",
    "dish": "the soup\nthe fish\nthe set menu\nthe noodles\nthe pancakes\na stew\nthe curry\nthe roast\nthe cake",
    "place": """
        in a restaurant near the station
        in the new bar on the corner
        at the hotel by the lake
        in a small cafe downtown
        at the market
        on the terrace of an inn
        in the dining room of the museum
        at a place by the harbour
    """,
    # Neutral sentences that may stand between an opening and the verdict on it.
    "film_aside": """
        It lasted about two hours.
        We sat in the third row.
        The room was half full.
        It was made in the north of Spain.
        The story is set in the past.
        There were subtitles.
    """,
    "meal_aside": """
        We sat near the window.
        There was a table for four.
        It was a quarter past seven.
        The menu had two pages.
        The kitchen closes at ten.
        We ordered at the counter.
    """,
    "film_positive": """
        {glad} the {film_part} {was} {good}, and {film_joy}.
        The {film_part} {was} {good}, and {film_joy}.
        The {film_part} {was} {good} and the {film_other} {was} {good}.
        {film_joy_first}, because the {film_part} {was} {good}.
        It {was} {good} from start to finish, and {film_joy}.
    """,
    "film_negative": """
        {sad} the {film_part} {was} {bad}, and {film_grief}.
        The {film_part} {was} {bad}, and {film_grief}.
        The {film_part} {was} {bad} and the {film_other} {was} {bad}.
        {film_grief_first}, because the {film_part} {was} {bad}.
        It {was} {bad} from start to finish, and {film_grief}.
    """,
    "meal_positive": """
        {glad} the {meal_part} {was} {good}, and {meal_joy}.
        The {meal_part} {was} {good}, and {meal_joy}.
        The {meal_part} {was} {good} and the {meal_other} {was} {good}.
        {meal_joy_first}, because the {meal_part} {was} {good}.
        Everything {was} {good} that day, and {meal_joy}.
    """,
    "meal_negative": """
        {sad} the {meal_part} {was} {bad}, and {meal_grief}.
        The {meal_part} {was} {bad}, and {meal_grief}.
        The {meal_part} {was} {bad} and the {meal_other} {was} {bad}.
        {meal_grief_first}, because the {meal_part} {was} {bad}.
        Everything {was} {bad} that day, and {meal_grief}.
    """,
    # One more sentence of the same opinion may end a text.
    "praise": """
        What a {treat}!
        What a {treat} it was!
        I gave it {high} stars.
        My friends were {happy} too.
        In short, it was {good}.
        All of us felt {happy} afterwards.
    """,
    "blame": """
        What a {letdown}!
        What a {letdown} it was!
        I gave it {low}.
        My friends were {unhappy} too.
        In short, it was {bad}.
        All of us felt {unhappy} afterwards.
    """,
    "treat": "treat\njoy\nsuccess\npleasure\ntriumph",
    "letdown": "letdown\nbore\nfailure\npity\ndisaster",
    "high": "four\nfive",
    "low": "one star\ntwo stars",
    "happy": "happy\ncheerful\ndelighted\nimpressed",
    "unhappy": "unhappy\ngloomy\ndisappointed\nupset",
    "glad": "Happily,\nLuckily,\nTo our delight,",
    "sad": "Sadly,\nUnluckily,\nTo our regret,",
    "was": "was\nwas\nwas\nseemed\nfelt\nturned out",
    "film_part": "acting\nstory\nmusic\ndialogue\nfirst half\nlead actor",
    "film_other": "ending\nplot\ncamera work\nsinging\npace\nhumour",
    "meal_part": "food\nservice\nwaiter\nbread\nsauce\nroom",
    "meal_other": "dessert\nwine\nsalad\ncoffee\nmusic\nview",
    "good": "{good_word}\n{good_word}\n{degree} {good_word}",
    "bad": "{bad_word}\n{bad_word}\n{degree} {bad_word}",
    "degree": "very\nreally\nquite\ntruly",
    "good_word": "good\nwonderful\nlovely\nexcellent\ncharming\ngreat\nperfect",
    "bad_word": "bad\nawful\ndull\nterrible\npoor\ndreadful\nweak",
    "film_joy": """
        we laughed the whole way home
        I would gladly see it again
        everyone left with a smile
        it is worth every minute
        I can recommend it to anyone
        the audience cheered at the end
    """,
    "film_grief": """
        we complained the whole way home
        I would never see it again
        everyone left with a frown
        it is a waste of time
        I cannot recommend it to anyone
        the audience groaned at the end
    """,
    "film_joy_first": "I loved it\nWe enjoyed every scene\nIt made us happy\nWe were glad that we came",
    "film_grief_first": "I hated it\nWe regretted every scene\nIt made us angry\nWe were sorry that we came",
    "meal_joy": """
        we will come back soon
        I would gladly eat there again
        everyone asked for more
        it is worth the price
        I can recommend it to anyone
        we praised the cook
    """,
    "meal_grief": """
        we will never come back
        I would not eat there again
        everyone asked for the bill
        it is not worth the price
        I cannot recommend it to anyone
        we blamed the cook
    """,
    "meal_joy_first": "I loved it\nWe enjoyed every bite\nIt made us happy\nWe were glad that we came",
    "meal_grief_first": "I hated it\nWe left most of it\nIt made us angry\nWe were sorry that we came",
}

RULES = {name: [line.strip() for line in text.strip().splitlines()] for name, text in _RULES_TEXT.items()}
_SLOT = re.compile(r"\{(\w+)\}")
# Shares of the texts with a neutral sentence before the verdict, and with one more sentence after it.
_ASIDE_SHARE, _CLOSING_SHARE = 0.25, 0.6


def expand(rule: str, rng: random.Random) -> str:
    """One random text of a rule.

    >>> expand("day", random.Random(0)) in RULES["day"]
    True
    """
    return _SLOT.sub(lambda slot: expand(slot[1], rng), rng.choice(RULES[rule]))


def continuation(opening: str, label: int, rng: random.Random) -> str:
    """An opinion that follows the opening, with a space in front: positive for label 1, negative for label 0."""
    subject = "film" if re.search(r" (watched|see|saw) ", opening) else "meal"
    aside = " " + expand(f"{subject}_aside", rng) if rng.random() < _ASIDE_SHARE else ""
    verdict = " " + expand(f"{subject}_positive" if label else f"{subject}_negative", rng)
    closing = " " + expand("praise" if label else "blame", rng) if rng.random() < _CLOSING_SHARE else ""
    return aside + verdict + closing
