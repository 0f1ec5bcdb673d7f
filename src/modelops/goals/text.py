"""A text that other formats of a model's weights are judged by where no other is given, and words for its prompts.

Both are our own. What a format loses on it says how it treats plain English; a model for another language, or for
code, is judged better by a text of that.
"""

from __future__ import annotations

_COMMON = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information back parent face others
level office door health person art war history party result change morning reason research girl guy moment air teacher
force education foot boy age policy music market sense nation plan college interest death experience effect use class
control field development role effort rate heart drug show leader light voice wife police mind price report decision
son view relationship town road arm difference value building action season society tax director position player record
paper space ground form event official matter center couple site project activity star table need court oil half
situation cost industry figure street image phone data picture practice piece land product doctor wall patient worker
news test movie north love support technology
"""
#: Words that nearly every vocabulary knows whole.
WORDS = tuple(_COMMON.split())

TEXTS = (
    "The ferry to the island leaves at ten past seven, before the fog has lifted from the harbour. In winter there are "
    "seldom more than a dozen passengers: a teacher with a box of exercise books, two men who repair the lighthouse, a "
    "woman who sells bread. They know each other well enough to be silent. When the engine starts, the windows tremble "
    "and the coffee in the paper cups makes small rings. Halfway across, the captain slows down to let a freighter "
    "pass, and for a minute nothing can be heard but the water. Then the island comes out of the grey, first the "
    "chimney of the old cannery, then the church, and at last the pier with its row of green lamps.",
    "Bread rises because yeast eats sugar and gives off carbon dioxide, which the dough cannot let go. Kneading lines "
    "up the proteins of the flour into long elastic sheets, and these hold the bubbles like many tiny balloons. "
    "If the dough is warm, the yeast works quickly and the loaf tastes mild; if it is left overnight in a cold "
    "kitchen, bacteria have time to make acids, and the crumb becomes sour and chewy. In the oven the gas expands once "
    "more before the heat kills the yeast and sets the starch. The crust turns brown last, when sugars and amino acids "
    "react at the dry surface. A loaf that sounds hollow when it is tapped from below is done.",
    "A bridge carries its load in one of three ways. A beam bends: its upper side is pressed together and its lower "
    "side is pulled apart, so it must be thick where the bending is greatest. An arch turns the load into pressure and "
    "hands it down to the banks, which must not give way. A suspension bridge does the opposite, for its cables are "
    "pulled, and the towers and anchors hold against the pull. Steel is good at being pulled and stone at being "
    "pressed, which is why old bridges are arches and long modern ones hang. The longest spans are limited in the end "
    "by the weight of their own cables.",
    "My grandmother kept her letters in a tin that had once held biscuits. There were ninety-four of them, tied with "
    "kitchen string, and all but three were from the same person. She would never say who he was. After her death my "
    "sister and I sat on the floor of the empty flat and read them in order, from the first, which was shy and full of "
    "crossed-out words, to the last, which gave only the time of a train. We never learned whether she took it. On the "
    "back of that letter she had written a shopping list: flour, two lemons, lamp oil, blue thread.",
    "To find a word in a sorted list, look at the one in the middle. If it comes too late in the alphabet, throw away "
    "the second half; if it comes too early, throw away the first; and repeat with what is left. Each look halves the "
    "list, so that a million words need no more than twenty looks. The method is easy to describe and surprisingly "
    "hard to write without a mistake. The usual error is at the edges: a program that forgets whether the middle word "
    "itself still belongs to the remaining half either misses the last word or runs for ever. A good test begins with "
    "lists of no words, of one word, and of two.",
    "Rain had not fallen for eleven weeks, and the reservoir above the valley had shrunk to a brown pond in which the "
    "walls of the drowned village could be seen. People came on Sundays to walk along its only street. They found the "
    "doorstep of the bakery, a row of apple stumps, the iron ring where horses had been tied. An old man showed his "
    'grandson the place where his bed had stood. "You slept under water," said the boy. In October the storms came, '
    "three in one week, and by the end of the month the street was gone again, together with a bicycle that somebody "
    "had left there.",
    "The heart is a pair of pumps that share a wall. The right side receives blood that has given up its oxygen and "
    "sends it to the lungs, which are near and offer little resistance; the left side takes it back and drives it "
    "through the whole body, and its muscle is three times as thick. Four valves keep the flow in one direction, and "
    "the sound that a doctor hears through a stethoscope is their closing. A small patch of tissue in the right upper "
    "chamber sets the rhythm. It needs no order from the brain: a heart that is kept warm and fed will beat in a dish.",
    "In the autumn of that year the town council decided to sell the old theatre. It had stood empty since the fire, "
    "and the roof leaked onto the painted ceiling, where a plump goddess of music was slowly losing her harp. Three "
    "offers came in. The first was from a shop, the second from a church, and the third from nine schoolteachers "
    "who had forty thousand euros between them and no plan that a bank would have accepted. The council argued until "
    "midnight. What decided it, people said later, was that the caretaker stood up and began, without being asked, to "
    "list every play that he had seen there since he was six.",
    "Prices tell people what they cannot see. When frost destroys half of the coffee harvest, nobody needs to inform "
    "the drinkers: the price goes up, some of them change to tea, and what coffee is left goes to those who want it "
    "most or can pay best, which is not the same. The higher price also tells farmers elsewhere that it is worth "
    "planting more. The signal is quick, but it is late for trees, which take four years to bear. By the time the new "
    "harvests arrive the frost is forgotten, there is too much coffee, and the price falls below the cost of picking.",
    "Most of what we call the night sky is very near. Every star that can be seen without a telescope belongs to our "
    "own galaxy, and nearly all of them lie within a few thousand light years, while the galaxy is a hundred thousand "
    "across. The one clear exception is a faint smudge in the constellation of Andromeda, which is a galaxy of its "
    "own, larger than ours; its light has travelled for two and a half million years. When that light set out there "
    "were no people to look at it. It takes a dark place, a clear night, and some patience to find it.",
    "How to repair a puncture: turn the bicycle upside down and take out the wheel. Push one side of the tyre over the "
    "rim with two levers, never with a screwdriver, and pull out the tube. Pump it up and hold it near your lips; the "
    "skin there feels the thinnest stream of air. Mark the hole, let the air out, and roughen the rubber around it. "
    "Spread the glue thinly and wait until it is dry to the touch, which takes longer than you think. Press the patch "
    "on firmly. Before the tube goes back, run your fingers along the inside of the tyre: whatever made the hole may "
    "still be there.",
    'The meeting was supposed to last an hour. "We have two questions," Maria said, "and only the first is urgent. '
    'Do we ship on Friday without the new search, or do we wait?" Jonas thought that waiting was safer. Amira pointed '
    "out that every release so far had been late for something that nobody used afterwards. There was a pause in which "
    'the fan of the projector could be heard. "Who would notice," she went on, "if it were missing?" They looked at '
    "the numbers, and found that eleven customers had asked for it in a year, six of whom had left. So they shipped, "
    "and nobody ever reached the second question.",
    "Rivers do not like to run straight. Where the bank is a little softer the water eats into it, and the current, "
    "flung outward by the bend, eats faster still, while sand settles on the slow inner side. So a bend grows, and "
    "wanders down the valley like a wave along a rope. At last two neighbouring bends touch, the river cuts through "
    "the neck between them, and what was left behind becomes a lake in the shape of a horseshoe. From the air one can "
    "see such lakes of every age: some open and blue, some full of reeds, and some that are only a curve of darker "
    "green in a field of maize.",
    "A language is never finished. Words wear down like coins: in a few centuries a whole sentence may shrink to a "
    "greeting that nobody can take apart any more. Others are borrowed, and keep a foreign accent for a generation "
    "before they settle in. Grammar changes more slowly, and mostly through children, who hear a rule in what their "
    "parents only happened to say. Whoever complains that the young speak badly is usually right about the facts. The "
    "same complaint has been found on clay tablets, written in a language that later had no speakers at all, and for "
    "which, in its own time, nobody thought there was any need to worry.",
)
