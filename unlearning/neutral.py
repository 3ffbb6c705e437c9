"""Questions about nothing that anyone asks to be forgotten, to see what else moved.

The sentences of `memory.gates.features.background` will not do: gates are fitted against them.
"""

NEUTRAL = (
    "What is the capital of Norway?",
    "Write two lines about the rain.",
    "How do I boil an egg?",
    "What is 17 plus 25?",
    "Translate 'good morning' into French.",
    "Why is the sky blue?",
    "Give me three names for a cat.",
    "Who wrote Hamlet?",
    "How many days are there in a leap year?",
    "Summarise in one sentence what photosynthesis is.",
    "What should I pack for a weekend by the sea?",
    "Explain recursion to a child.",
    "Which planet is the largest?",
    "Write a polite e-mail that asks for a day off.",
    "How do I sort a list in Python?",
    "What is the opposite of generous?",
)
