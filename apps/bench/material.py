"""What the benches are made of, in words of our own: facts, small talk, commands, a chronicle.

Data only; `dialogue.py` makes conversations and documents of it.
"""

from __future__ import annotations

from typing import NamedTuple


class Fact(NamedTuple):
    """Something a user says once.

    Args:
        said: the user's message.
        reply: the assistant's; it does not repeat the keyword.
        keyword: in lower case; part of `said`, of no other turn, and of no question.
        questions: two ways of asking for it: in the words of `said`, and in other words.
    """

    said: str
    reply: str
    keyword: str
    questions: tuple[str, str]


FACTS = (
    Fact(
        "We finally adopted a puppy from the shelter, and the children named her Biscuit.",
        "How lovely! The first weeks with a young animal are always lively.",
        "biscuit",
        ("What is the name of my puppy?", "What did my kids call our pet?"),
    ),
    Fact(
        "For my locker at the climbing hall I picked the code word marigold.",
        "Understood. A word is easier to keep in mind than a number.",
        "marigold",
        ("What is the code word for my locker?", "Which secret lets me into my cabinet?"),
    ),
    Fact(
        "Since last spring we live in Utrecht, right beside a canal.",
        "Living by the water sounds peaceful.",
        "utrecht",
        ("In which city do I live?", "Where is my home?"),
    ),
    Fact(
        "My sister Noor earns her living as a glassblower.",
        "That is a rare craft, and a hot one.",
        "glassblower",
        ("What does my sister Noor do for a living?", "What is my sister's profession?"),
    ),
    Fact(
        "Please keep in mind that I am badly allergic to cashews.",
        "I will, and I will leave them out of every recipe.",
        "cashew",
        ("What am I allergic to?", "Which food makes me ill?"),
    ),
    Fact(
        "My birthday falls on the ninth of November.",
        "Thanks for telling me; a cosy time of the year.",
        "november",
        ("When is my birthday?", "In which month was I born?"),
    ),
    Fact(
        "On Tuesdays I rehearse with an amateur orchestra, where I sit with the cellos.",
        "Playing together in a group is a fine way to spend an evening.",
        "cello",
        ("Which instrument do I play in the orchestra?", "What music do I make in the evening?"),
    ),
    Fact(
        "I still drive my grandfather's old green Saab.",
        "Cars of that age have a character of their own.",
        "saab",
        ("What car do I drive?", "Which vehicle do I own?"),
    ),
    Fact(
        "My new boss at the office is called Ottoline.",
        "I hope the two of you work well together.",
        "ottoline",
        ("What is the name of my new boss?", "Who do I report to at work?"),
    ),
    Fact(
        "My commuter train always leaves from platform 17.",
        "Good to know, then you can walk straight there.",
        "17",
        ("From which platform does my train leave?", "Where at the station do I board?"),
    ),
    Fact(
        "Our home network shows up under the name Lighthouse.",
        "A clear name makes it easy for guests to find.",
        "lighthouse",
        ("What is the name of our home network?", "Which wifi belongs to us?"),
    ),
    Fact(
        "Whenever there is something to celebrate, I ask for bouillabaisse.",
        "A festive choice, and worth the long preparation.",
        "bouillabaisse",
        ("What do I ask for when there is something to celebrate?", "What is my favourite dish?"),
    ),
    Fact(
        "My grandmother grew up in Bergen, where it rains nearly every day.",
        "She must have owned a very good coat.",
        "bergen",
        ("Where did my grandmother grow up?", "Which town does my grandma come from?"),
    ),
    Fact(
        "The flights are booked: in August we go to Reykjavik for ten days.",
        "Pack something warm even for the summer.",
        "reykjavik",
        ("Where do we fly in August?", "What is the destination of our summer trip?"),
    ),
    Fact(
        "My best time over the half marathon is one hour and 43 minutes.",
        "That is a respectable pace for an amateur.",
        "43",
        ("What is my best time over the half marathon?", "How fast was my quickest race?"),
    ),
    Fact(
        "Our reading circle has chosen The Amber Hive as its next novel.",
        "I hope that it leads to a good discussion.",
        "amber",
        ("Which novel has our reading circle chosen?", "What is our club's book?"),
    ),
    Fact(
        "My dentist is Doctor Okafor, two streets from here.",
        "A short way is worth a lot on such days.",
        "okafor",
        ("What is the name of my dentist?", "Who takes care of my teeth?"),
    ),
    Fact(
        "At work our secret project goes by the name Kestrel.",
        "I will treat it with discretion.",
        "kestrel",
        (
            "What is the name of our secret project at work?",
            "What do we call the thing my team builds?",
        ),
    ),
    Fact(
        "The lemon tree on my balcony has a name, Archibald.",
        "Plants with names are said to be watered more often.",
        "archibald",
        ("What is the name of my lemon tree?", "How did I christen my citrus plant?"),
    ),
    Fact(
        "To save you asking: I wear shoes in size 41.",
        "Noted, that helps when looking for boots.",
        "41",
        ("What is my shoe size?", "How big are my feet?"),
    ),
)

TOPICS: tuple[tuple[str, str, str, str], ...] = (
    ("choosing a name for a cat", "Pick two syllables.", "Naming it after a rival.", "Call it."),
    ("inventing strong passwords", "Join four odd words.", "Reusing one.", "Get a manager app."),
    ("finding a flat in a new town", "Walk the area first.", "Skipping the lease.", "Ask around."),
    ("picking a career in crafts", "Visit a workshop.", "Buying tools early.", "Try a course."),
    ("cooking for guests with allergies", "Ask ahead.", "Sharing a spoon.", "Label each bowl."),
    ("planning a birthday party", "Set the date early.", "Too many games.", "Bake the cake."),
    ("learning the violin", "Practise slowly.", "Pressing too hard.", "Record yourself."),
    ("buying a used car", "See the service book.", "Ignoring rust.", "Take a mechanic along."),
    ("getting on with a manager", "Agree on goals.", "Guessing wishes.", "Ask for a talk."),
    ("travelling by night train", "Book a lower bunk.", "Packing late.", "Bring earplugs."),
    ("setting up a home router", "Place it high.", "Keeping the default code.", "Update it."),
    ("cooking fish soup", "Start with the stock.", "Boiling the fish.", "Serve with bread."),
    ("writing down family history", "Ask the eldest.", "Trusting dates.", "Scan the letters."),
    ("packing for a long flight", "Take layers.", "Three books.", "Weigh the bag at home."),
    ("training for a long run", "Add distance gently.", "Racing each time.", "Rest on Fridays."),
    ("leading a book club", "Send questions.", "Choosing huge tomes.", "Rotate the host."),
    ("keeping teeth healthy", "Brush twice daily.", "Brushing too hard.", "Floss at night."),
    ("naming a software project", "Keep it short.", "Clever puns.", "Check that it is free."),
    ("growing herbs on a balcony", "Give them sun.", "Drowning the roots.", "Pinch the tips."),
    ("buying hiking boots", "Shop in the evening.", "Trusting the label.", "Wear thick socks."),
    ("baking sourdough bread", "Feed the starter.", "Too much flour.", "Let it rise overnight."),
    ("cleaning a bicycle chain", "Use a stiff brush.", "Oiling the dirt.", "Wipe it dry."),
    ("painting a small room", "Start with the ceiling.", "One thick coat.", "Open the window."),
    ("photographing birds", "Come at dawn.", "Moving fast.", "Focus on the eye."),
    ("playing chess openings", "Develop knights first.", "Early queen moves.", "Castle soon."),
    ("drawing hands", "Block in the shapes.", "Outlining at once.", "Study your own."),
    ("repairing a leaking tap", "Shut the valve.", "Losing the washer.", "Tighten by hand."),
    ("writing short stories", "Begin late.", "Explaining the end.", "Read it out loud."),
    ("reading a weather map", "Look for the fronts.", "Forgetting the scale.", "Compare days."),
    ("folding paper cranes", "Crease sharply.", "Thick paper.", "Make a hundred."),
    ("keeping bees", "Join a group.", "Opening hives in rain.", "Check for mites."),
    ("building a garden wall", "Dig a footing.", "Skipping the level.", "Let it settle."),
    ("brewing filter coffee", "Rinse the paper.", "Boiling water.", "Grind a little finer."),
    ("watching the night sky", "Give your eyes time.", "A bright torch.", "Learn one shape."),
    ("sewing on buttons", "Double the thread.", "Pulling it flat.", "Wind a shank."),
    ("swimming the crawl", "Breathe to both sides.", "Lifting the head.", "Kick less."),
    ("sorting old photographs", "Sort by decade.", "Scanning it all.", "Name the faces."),
    ("giving a short talk", "Open with a story.", "Reading slides.", "Stop on time."),
    ("making orange jam", "Slice thinly.", "Cooking too long.", "Test on a cold plate."),
    ("caring for wooden floors", "Sweep daily.", "Too much water.", "Oil them once a year."),
)
"""A topic, a tip, a usual mistake, a next step: three turns of small talk each, 120 in all. The
first twenty are near misses of the facts."""

SMALL_TALK = (
    ("Have you a tip for me about {topic}?", "With {topic}, this helps most: {answer}"),
    ("What do people get wrong about {topic}?", "A usual mistake in {topic}: {answer}"),
    ("And the next step in {topic}, what is it?", "When you are past the basics: {answer}"),
)

NEEDS_MEMORY = (
    "Remind me what my dog is called.",
    "What was the word I chose for my locker?",
    "Where did I say that I live?",
    "What does my sister do again?",
    "Can I eat this cake, given what I told you about nuts?",
    "When is my birthday?",
    "Which instrument did I tell you I play?",
    "What car do I drive?",
    "Who is my boss?",
    "From which platform does my train go?",
    "What name did I give our home network?",
    "Cook me the dish I always ask for.",
    "Which town is my grandmother from?",
    "Write a packing list for the trip I have booked.",
    "How much faster than my record would ninety minutes be?",
    "Which novel did our reading circle settle on?",
    "Draft a note to my dentist, by name.",
    "Use my project's code name in a headline.",
    "Write a birthday card for my lemon tree, by name.",
    "Order boots in my size.",
)

NEEDS_NOTHING = (
    "What is seventeen times twenty-three?",
    "Translate good morning into French.",
    "Write two lines about the sea.",
    "Name three prime numbers above ten.",
    "How many legs does a spider have?",
    "Give me another word for happy.",
    "What does HTTP stand for?",
    "Who painted the Mona Lisa?",
    "Put these in order: pear, apple, plum.",
    "What is the boiling point of water?",
    "Correct this: he go to school yesterday.",
    "Tell me a joke about penguins.",
    "Convert ten miles to kilometres.",
    "Which day comes after Sunday?",
    "Write a function that reverses a string.",
    "Spell the word rhythm backwards.",
    "Explain in one sentence how a refrigerator works.",
    "What is the square root of 144?",
    "Suggest a title for a story about robots.",
    "Is a tomato a fruit or a vegetable?",
)

PLACES = (
    "Harrowmill", "Thistledon", "Quernby", "Ravenscar", "Oldmere", "Wexcombe", "Larkholt",
    "Pennywick", "Grimsdale", "Foxbourne", "Marlhythe", "Eastover",
)  # fmt: skip
PEOPLE = (
    "Aldous", "Berengar", "Cordelia", "Dunstan", "Emmeline", "Fenwick", "Griselda", "Horatio",
    "Isolde", "Jocasta", "Leofric", "Millicent",
)  # fmt: skip
EVENTS = (
    "the river rose over its banks and carried the footbridge away",
    "a fire in the granary took half of the winter's corn",
    "the schoolhouse was given a new roof of slate",
    "a fever kept every door shut for three weeks",
    "the old well ran dry and another had to be dug",
    "a travelling company of players filled the barn every night",
    "the bells were recast, and the lowest never sounded right again",
    "snow fell so deep that letters were carried on sledges",
)
DEEDS = (
    "counted the losses and wrote them down in a careful hand",
    "rode through the night to ask the neighbours for help",
    "spoke against the council's plan, and was not thanked for it",
    "opened the cellar to whoever had nowhere to sleep",
    "paid the carpenters with silver that nobody had known of",
    "walked the whole length of the valley to bring the news",
)
