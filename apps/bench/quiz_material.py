"""What quizzes are made of: things to buy, and questions that have nothing to do with them.

All of it was written for this bench.
"""

GROCERIES = (
    "almond butter", "apricot jam", "baby spinach", "barley", "basil leaves", "beetroot",
    "black olives", "blueberries", "brown rice", "buttermilk", "candied ginger", "cardamom",
    "cherry tomatoes", "chickpeas", "cinnamon sticks", "coconut flakes", "corn tortillas",
    "cottage cheese", "cranberry juice", "dark chocolate", "dried figs", "egg noodles", "fennel",
    "goat cheese", "green lentils", "hazelnuts", "honeycomb", "kale", "lemon zest", "lime cordial",
    "maple syrup", "mushrooms", "oat milk", "orange marmalade", "paprika", "parsnips",
    "peanut oil", "pickled cabbage", "pine nuts", "pomegranate", "poppy seeds", "pumpkin seeds",
    "red peppers", "rye bread", "saffron", "sesame oil", "smoked salmon", "soy sauce",
    "sunflower seeds", "sweet potatoes", "vanilla pods", "walnut halves", "wholemeal flour",
)  # fmt: skip

_ASKED = """
Where would you go to borrow a novel for two weeks?|library|harbour|bakery|stadium|garage
What do bees carry home from flowers?|pollen|gravel|feathers|salt|timber
Which tool would you use to drive a nail into a board?|hammer|ladle|ruler|comb|kettle
What falls from clouds in winter when it is very cold?|snow|sand|ash|petals|coins
Where does a train stop to let passengers on?|platform|pasture|attic|fountain|cellar
What do you open when it rains and you must walk home?|umbrella|dictionary|drawer|curtain|oven
Which animal would pull a plough on an old farm?|ox|otter|parrot|lizard|hedgehog
What do you put on an envelope before you post it?|stamp|button|candle|helmet|magnet
Where would a captain stand to steer a ship?|bridge|balcony|chimney|meadow|stage
What does a baker put into dough to make it rise?|yeast|chalk|gravel|paint|wax
Which room of a house is most likely to hold a bathtub?|bathroom|pantry|garage|hallway|porch
What do you look through to see the craters of the moon?|telescope|thimble|trumpet|fork|glove
Where do you sit when a dentist looks at your teeth?|a chair|a saddle|a swing|a sledge|a canoe
What would a gardener use to cut a hedge?|shears|spoon|needle|eraser|anchor
What would you wear to walk over deep snow?|snowshoes|sandals|slippers|mittens|earrings
What keeps a kite from flying away?|a string|a lamp|a pillow|a coin|a bell
Where would you most likely hear a judge speak?|courtroom|swimming pool|barn|kitchen|tunnel
What do you call a person who repairs pipes?|plumber|poet|tailor|florist|pilot
What is left in the grate when a wood fire has burned down?|ashes|pearls|icicles|seeds|ink
Which of these melts on a warm day?|butter|granite|iron|glass|brick
What would you strike to light a candle?|match|drum|chord|bargain|pose
Where do fishermen mend their nets?|on the quay|in the bank|at the cinema|in the lift|on a bus
What do you turn to make a screw go in?|screwdriver|page|pancake|steering wheel|record
What does a violinist draw across the strings?|bow|brush|curtain|rake|map
Which bird is known for being active at night?|owl|swan|robin|pigeon|swallow
Where would you look up the next high tide?|tide table|recipe|receipt|horoscope|crossword
Where do you keep ice cream so that it stays hard?|freezer|wardrobe|mailbox|toolbox|bookshelf
What do people throw into a wishing well?|coins|shoes|lamps|keys|plates
Which of these grows under the ground?|carrot|cherry|plum|pear|lemon
What does a shepherd look after?|sheep|bridges|engines|paintings|letters
What would you use to sweep leaves off a path?|broom|spoon|sponge|violin|blanket
Where would you find an actor before the play begins?|dressing room|queue|bell tower|mine|orchard
What do you spread under a picnic on the grass?|blanket|newspaper advert|ladder|mirror|carpet nails
Which of these tells you the direction of the wind?|weather vane|bookmark|thermos|doorbell|calendar
What would a carpenter use to smooth a plank?|sandpaper|toothpaste|velvet|butter|parchment
Where does a river end?|at the sea|on a shelf|in a purse|under a hat|behind a door
What do you fill before a long drive?|the tank|the vase|the inkwell|the bird bath|the pillowcase
Which metal is drawn to a magnet?|iron|gold|silver|lead|tin foil
What shows you the days of the month?|calendar|hammock|lantern|scarf|barometer
What do you press to call a lift?|a button|a flower|grapes|a shirt|a wound
Where is a violin kept when nobody plays?|in its case|in the oven|in the pond|in a tyre|in a vase
What does a goalkeeper try to stop?|the ball|the clock|the rain|the music|the traffic
Which part of a tree takes up water?|roots|bark|twigs|blossoms|cones
What would you read to learn how to cook a stew?|recipe|contract|timetable|passport|invoice
Where do you wait for a green light?|at the crossing|in the attic|on a pier|in a nest|in bed
What do you use to weigh flour?|scales|tongs|scissors|compass|ladder
What does a candle need in order to burn?|air|paint|gravel|shade|noise
Which of these lives in a burrow?|rabbit|eagle|salmon|horse|swan
What do you wind around a sprained ankle?|bandage|wallpaper|ivy|spaghetti|barbed wire
Where does an astronaut work?|in orbit|in a vineyard|in a bakery|in a stable|in a choir
What covers the floor of a desert?|sand|moss|snow|tiles|carpet
Which sound does a clock make?|ticking|barking|hissing|humming a tune|sobbing
What would you need to fly from one country to another?|passport|fishing rod|apron|lawnmower|whistle
What do squirrels hide before the winter?|nuts|stamps|pebbles|ribbons|spoons
Where would you store wine for ten years?|cellar|greenhouse|windowsill|car boot|letterbox
What does a painter put colours on?|palette|saddle|keyboard|tray of ice|doormat
Which of these would you find on a beach?|shells|icebergs|pine cones on a tree|skyscrapers|tractors
What do you tie to stop a shoe from coming off?|laces|curtains|ropes of a tent|hair|parcels
Who carries letters from house to house?|postman|surgeon|lifeguard|jeweller|miner
What can you see when the sun comes out after rain?|rainbow|chandelier|lighthouse|billboard|fence
"""

QUESTIONS = tuple(tuple(line.split("|")) for line in _ASKED.strip().splitlines())
"""A question, its answer, and four that are wrong."""
