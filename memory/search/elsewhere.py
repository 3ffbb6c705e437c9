"""What people say elsewhere: a stand-in for a store's own background while it has little.

Data only. Sentences about nothing in particular, so that even the first entry of a store can be
told from what has no bearing on a question.
"""

from __future__ import annotations

ELSEWHERE = (
    "The meeting was moved to the afternoon because the room was taken.",
    "I usually take the bus when it rains, and walk when it does not.",
    "Thanks a lot, that was really helpful!",
    "He said that the report would be ready by the end of the week.",
    "We had soup for lunch and kept the rest for the next day.",
    "The new update made the program a little slower than before.",
    "Could you send me the address again, please?",
    "They painted the kitchen yellow, and now it looks much bigger.",
    "My phone was nearly empty, so I could not take any pictures.",
    "There was a long queue in front of the shop this morning.",
    "She has been learning the piano since the beginning of the year.",
    "That sounds wonderful, I am so happy for you!",
    "The train was late, but we still caught the film from the start.",
    "You can find the instructions on the second page.",
    "I forgot where I had put the keys, and they were in my coat.",
    "In the end we decided to stay at home and play a board game.",
    "The garden needs some work before the guests arrive in June.",
    "Our teacher told us about the history of the town.",
    "It is important to drink enough water when you exercise.",
    "The price went up again, so I am going to wait until autumn.",
    "A neighbour looks after the cat while we are away.",
    "I read half of the book on the flight and liked it.",
    "First heat the oven, then mix the flour with the sugar.",
    "The doctor said that everything was fine.",
)
