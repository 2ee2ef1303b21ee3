"""What the description generator draws from: twenty-five kinds of scenes with things in them, light, weather, mood."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    name: tuple(things.split("|"))
    for name, things in (
        ("landscape", "a winding river|a wheat field|a lone oak|rolling hills|a gravel road|a stone wall|grazing sheep|"
         "a distant farmhouse|a wooden gate|a meadow of poppies"),
        ("urban street", "a tram|a row of parked bicycles|a bakery window|street musicians|a zebra crossing|"
         "a newspaper kiosk|wet cobblestones|a delivery van|café tables|a traffic light"),
        ("animal", "a red fox|a barn owl|a sleeping cat|two herons|a brown bear|a border collie|a hedgehog|a grey seal|"
         "a tree frog|a pair of donkeys"),
        ("food", "a bowl of ramen|a cherry pie|sliced figs|a loaf of rye bread|grilled sardines|a copper pan|"
         "a cheese board|fresh basil|a jug of lemonade|steaming dumplings"),
        ("technology", "a circuit board|a robot arm|a server rack|a soldering iron|an oscilloscope|a tangle of cables|"
         "a drone|a 3D printer|an old terminal|a solar panel"),
        ("artwork", "an unfinished canvas|a marble bust|a paper collage|a bronze figure|pots of pigment|a mosaic|"
         "a woven tapestry|a charcoal sketch|a glass sculpture|an easel"),
        ("architecture", "a spiral staircase|a glass dome|a brick chimney|a row of columns|a concrete bridge|"
         "an arched doorway|a tiled roof|a clock tower|wrought iron balconies|a courtyard fountain"),
        ("sports", "a relay runner|a rowing crew|a goalkeeper|a tennis court|a climbing wall|a cycling pack|a judo mat|"
         "a diving board|a hockey stick|a cheering stand"),
        ("science", "a microscope|a rack of test tubes|a herbarium sheet|a skeleton model|a telescope|a petri dish|"
         "a chalkboard of formulas|a crystal sample|a centrifuge|a weather balloon"),
        ("social gathering", "a long dinner table|paper lanterns|a group of cousins|a birthday cake|folding chairs|"
         "a guitar player|a picnic blanket|clinking glasses|a barbecue|a card game"),
        ("vehicle", "a vintage tractor|a fishing boat|a steam locomotive|a yellow taxi|a camper van|a hot-air balloon|"
         "a cargo bicycle|a fire engine|a sailing dinghy|a snow plough"),
        ("workspace", "a cluttered desk|a drafting table|a sewing machine|a wall of tools|a potted fern|a desk lamp|"
         "rolled blueprints|a stack of ledgers|a workbench|a swivel chair"),
        ("garden", "a rose arch|a vegetable bed|a birdbath|a wheelbarrow|climbing beans|a greenhouse|a gravel path|"
         "a compost heap|blue hydrangeas|a wooden bench"),
        ("weather", "a thundercloud|a double rainbow|a flooded lane|a frosted window|a wall of fog|drifting snow|"
         "a bent birch|hailstones|a dust storm|a broken umbrella"),
        ("marketplace", "a spice stall|crates of oranges|a fishmonger|hanging scarves|a weighing scale|a flower cart|"
         "clay pots|a striped awning|baskets of eggs|a haggling couple"),
        ("night skyline", "lit office towers|a river reflection|a ferris wheel|a suspension bridge|a blinking antenna|"
         "a rooftop terrace|a passing train|a harbour crane|a full moon|a lit billboard"),
        ("children outdoors", "a rope swing|a muddy puddle|a kite|a tree house|chalk drawings|a wooden sledge|a hopscotch grid|"
         "a paper boat|a sandpit|a red tricycle"),
        ("music", "a grand piano|a brass band|a cello case|a drum kit|a sheet of music|a choir|a record player|"
         "an accordion|a violin maker|a stage microphone"),
        ("historical ruins", "a broken column|a moss-grown arch|an amphitheatre|a fallen statue|a castle keep|a Roman road|"
         "a roofless chapel|carved steps|a collapsed vault|an old well"),
        ("macro insect", "a ladybird|a dragonfly wing|a bumblebee|a beetle|a spider web|a butterfly|an ant trail|"
         "a grasshopper|a snail shell|a moth"),
        ("coast", "a lighthouse|a tide pool|a pebble beach|a wooden pier|a fishing net|a cliff path|a row of beach huts|"
         "an overturned boat|sea foam|a flock of gulls"),
        ("mountains", "a glacier tongue|a rope bridge|a summit cross|an alpine hut|a scree slope|a mountain goat|"
         "a cable car|a turquoise lake|a hiking party|a waterfall"),
        ("library or museum", "a reading room|a rolling ladder|a globe|a dinosaur skeleton|a display case|a card catalogue|"
         "a marble hall|a stack of atlases|an old manuscript|a sleeping guard"),
        ("industry", "a blast furnace|a conveyor belt|a cooling tower|a welding spark|stacked containers|a gantry crane|"
         "steel coils|a pipeline|a control room|a forklift"),
        ("festival", "a paper dragon|a fireworks burst|a carousel|masked dancers|a marching band|strings of lights|"
         "a candy stall|a bonfire|a decorated float|confetti"),
    )
}  # fmt: skip
"""Twenty-five kinds of scenes (reference §8), each with things that can be in it."""

LIGHT = (
    "low morning sun", "hard noon light", "golden evening light", "blue dusk", "candlelight", "a single lamp",
    "neon reflections", "moonlight", "soft light through clouds", "light through dusty windows", "flickering firelight",
    "bright snow light",
)  # fmt: skip
WEATHER = (
    "clear", "light rain", "after a storm", "thick fog", "first snow", "strong wind", "summer heat", "drizzle",
    "frost", "broken clouds", "humid haze", "a calm day",
)  # fmt: skip
MOODS = (
    "quiet", "busy", "festive", "lonely", "playful", "solemn", "hurried", "drowsy", "tense", "cheerful", "forgotten",
    "orderly", "chaotic", "tender", "proud", "curious",
)  # fmt: skip
PERSPECTIVES = (
    "from above", "from the ground", "from across the street", "through a doorway", "from very near", "from far away",
    "over a shoulder", "through leaves", "from a window", "head on", "from the side", "in a mirror",
)  # fmt: skip
