"""Questions whose evidence shares no word with them, among passages that do: words mislead, only meaning helps.

Each evidence sentence says what is asked for in other words (synonyms, descriptions in place of names, loanwords); the
eleven other passages repeat the question's words and say nothing about it. Nothing was tuned on them.
"""

from __future__ import annotations

import random

from draftapprox_integrations.specpc.scoring.bm25 import split_words

from .common import Question

# question: the sentence that answers it
_PAIRS = """
Which vehicle does the doctor drive?|Our family physician gets about in a small red car.
When was the child born?|The baby came into the world on 3 May.
Who wrote the novel?|The book is by Erik Lind, its author.
How much did the house cost?|They paid 90,000 crowns for their home.
Where is the wedding?|The couple will marry in the old chapel at Lund.
Which meal do the pupils get at noon?|For lunch the schoolchildren receive soup.
When does the shop close?|The store shuts its doors at six.
Who teaches the violin?|Fiddle lessons are given by Anna Holm.
What do the cattle eat in winter?|During the cold season the cows are fed hay.
How did the fire begin?|The blaze was started by a spark from a stove.
Which sickness did the king have?|His Majesty suffered from gout, an illness of the joints.
Who is the boss of the firm?|Mrs Dahl heads the company.
What was stolen from the museum?|Thieves took a golden cup out of the gallery.
How tall is the tower?|The spire rises 40 metres above the ground.
Where do the birds sleep?|Sparrows spend the night under the roof.
Which tongue do the villagers speak?|The people of the hamlet talk Danish, a Germanic language.
Why was the flight cancelled?|The plane did not take off because of fog.
What colour is the soldier's coat?|The infantryman wears a grey jacket.
Who won the race?|The fastest runner of all was Paul Berg.
How old is the tree?|Botanists put the age of that oak at 300 years.
Which instrument does the vicar play?|Our parish priest is a gifted cellist.
What does the guest dislike?|The visitor cannot stand onions.
When did the war end?|Peace was signed on 8 June.
Where did the ship sink?|The vessel went down off Cape Horn.
Who repaired the roof?|A carpenter from Ystad mended the tiles above the attic.
What is the salary of the clerk?|The office worker earns 400 crowns a month.
Which beverage is served at the meeting?|Those who attend the session are offered tea to drink.
How long is the holiday?|The vacation lasts three weeks.
Who owns the dog?|The hound belongs to the miller.
What frightened the horses?|The mares were scared by thunder.
Where was the treasure hidden?|The robbers had concealed the gold beneath an oak.
Which animal guards the farm?|A goose watches over the homestead.
When is the exam?|The test will be held on Friday.
Who painted the portrait?|The picture of the countess is the work of the artist Sven Ek.
What do the miners dig for?|Workers underground are after silver ore.
How fast is the train?|The locomotive reaches 90 kilometres an hour.
Where can visitors park?|Guests may leave their cars behind the barn.
What did the thief wear?|The burglar had on a green scarf.
Who discovered the cave?|The grotto was first found by two shepherds.
Which crop grows on the hill?|Barley is cultivated on the slope.
What is the cure for the cough?|Honey is a remedy that soothes a sore throat.
When does the rain season start?|The monsoon usually sets in during June.
How many people live in the town?|The municipality counts 4,000 inhabitants.
Who governs the island?|Rule over the isle lies with a bailiff.
What is the fastest way to the station?|To reach the railway terminus quickly, take the tram.
Where was the letter posted?|He mailed the note in Malta.
Which fabric is the dress made of?|Her gown was sewn from silk.
What killed the fish?|The trout died of poison.
Who built the bridge?|The viaduct was constructed by an engineer named Gram.
How heavy is the bell?|The chime in the steeple weighs two tonnes.
What is forbidden in the library?|Among the bookshelves smoking is not allowed.
When do the students graduate?|Undergraduates receive their degrees in July.
Which disease ruined the vineyard?|Mildew destroyed the grapes.
Who looks after the garden?|The flower beds are tended by old Mr Juhl.
Where does the river begin?|The source of the stream is a glacier.
What does the baker sell on Sunday?|At weekends the bread maker offers rolls.
How did the prisoner escape?|The convict got away through a tunnel.
Which sport does the minister like?|The cabinet member is fond of fencing.
What was the author's job?|Before he took to writing, the novelist had worked as a postman.
Who lent the money?|The loan came from an aunt.
When was the law passed?|Parliament adopted the act in March.
What lies under the church?|Below the cathedral there is a crypt.
How do the farmers water the fields?|Growers irrigate their land with pumps.
Which city is the capital?|The seat of government is Vantaa.
What hurt the dancer?|The ballerina injured herself on a nail.
Where do the refugees stay?|Those who fled are housed in tents.
Who took the photograph?|The snapshot was shot by a sailor.
Why did the factory shut?|The plant closed for lack of coal.
What is the lawyer famous for?|The attorney is renowned for her patience.
When does the ferry leave?|The boat departs at nine.
How many rooms has the hotel?|The inn offers twenty chambers.
Which gift did the bride get?|The newly wed woman was presented with a clock.
What caused the traffic jam?|Cars stood still because of a fallen crane.
Who advises the president?|Counsel to the head of state is given by Irma Frisch.
Where is the cemetery?|The graveyard lies beyond the mill.
What do bees make?|The hives yield honey.
How was the painting damaged?|The canvas was torn by a ladder.
Which road leads to the harbour?|To get down to the docks follow Mill Street.
What scared the burglar away?|The intruder fled when a parrot shrieked.
When did the emperor die?|The monarch passed away on 2 April.
Who cleans the windows?|The panes are washed by a man named Otto.
What is the price of a ticket?|Admission is three crowns.
Where did the couple meet?|Husband and wife got to know each other on a tram.
Which insect eats the cabbage?|Caterpillars feed on the vegetable.
How does the inventor travel?|The engineer goes everywhere by balloon.
What broke the window?|The glass was shattered by a ball.
Who inherited the castle?|After the duke's death the fortress passed to a nephew.
When is breakfast?|The morning meal is served at seven.
What is the teacher allergic to?|The schoolmistress gets a rash from strawberries.
Where is the gold mined?|The precious metal is dug in the Urals.
Which weapon was found?|Police came upon a dagger.
How large is the lake?|The water covers nine square kilometres.
What does the widow collect?|Since her husband's death the old lady has gathered stamps.
Who rescued the swimmer?|A fisherman saved the man from drowning.
Why is the beach closed?|Nobody may bathe on that shore because of jellyfish.
What did the spy carry?|The secret agent had a map on him.
When was the hospital opened?|The clinic received its first patients in 1952.
Which fruit is used in the cake?|The pastry contains pears.
How did the orphan earn a living?|The parentless boy supported himself by shining shoes.
Where does the smell come from?|The odour rises out of a tannery.
"""
# What other passages say with the question's words; {a} and {b} are two of them.
_NOISE = [
    "The word {a} stands on a sign in the hall, and below it somebody has written {b}.",
    "A leaflet with the title {a} was left on the bench. Its second page is about {b}.",
    "Nobody mentioned {a} that evening. There was some talk of {b}, but it led to nothing.",
    "The chapter on {a} is missing from our copy, and that on {b} has lost a page.",
    "In the crossword {a} fits 4 down. For 7 across {b} is a letter too long.",
    "The committee put {a} on the agenda. It came after {b}, and both were postponed.",
    "An exhibition named {a} opens next year. Another, {b}, has been planned for long.",
    "{a} is listed in the index twice. So is {b}, with a wrong page.",
    "The choir sang a song called {a}. The second verse repeats {b} four times.",
    "There is a folder for {a} in the archive. It is as empty as the one for {b}.",
    "Somebody asked about {a} at the desk. The reply was a form that also speaks of {b}.",
]
_REST = ["It was a quiet year.", "The weather had been fine until then.", "More is not known.", "Few remember it now."]


def paraphrased_questions(count: int, seed: int) -> list[Question]:
    """Up to 100 questions with twelve passages each, without titles.

    Args:
        count: Number of questions.
        seed: Seed of their order, and of that of the passages.

    Raises:
        ValueError: more than there are.
    """
    pairs = [tuple(line.split("|")) for line in _PAIRS.strip().splitlines()]
    if count > len(pairs):
        raise ValueError(f"there are {len(pairs)} questions; got count={count}")
    rng = random.Random(seed)
    return [_question(rng, text, evidence) for text, evidence in rng.sample(pairs, count)]


def _question(rng: random.Random, text: str, evidence: str) -> Question:
    words = split_words([text])[0]
    before, after = rng.sample(_REST, 2)
    passages = [f"{before} {evidence} {after}"]
    for template in _NOISE:
        a, b = rng.sample(words, 2) if len(words) > 1 else (words[0], words[0])
        said = template.format(a=a, b=b)
        passages.append(f"{said[0].upper()}{said[1:]} {rng.choice(_REST)}")
    order = list(range(len(passages)))
    rng.shuffle(order)
    start = passages[0].index(evidence)
    return Question(text, [passages[i] for i in order], evidence=[(order.index(0), (start, start + len(evidence)))])
