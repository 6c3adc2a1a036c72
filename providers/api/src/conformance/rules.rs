//! The rules as sentences, each with why it matters and what a provider does about it: for its author.

type Rule = (&'static str, &'static str);

pub(super) const CREATE: Rule = (
    "a worker is created, listed and deleted",
    "Nothing else can be tried without. What `create` answers is what `list` shows until `delete` takes it away. A worker \
     outlives the call that created it: an executable starts it in a session of its own (`setsid`), because what is left of its \
     process group ends with the call.",
);
pub(super) const REPEATED_CREATE: Rule = (
    "a repeated create gives one worker",
    "A caller whose answer was lost sends the same create again. Look for an object with the same owner, name \
     and attempt first and return it, pass the token on to the engine, or answer `already_exists`; say which \
     of these in `idempotency`.",
);
pub(super) const SIDE_BY_SIDE: Rule = (
    "creates side by side give one worker",
    "A caller that was taken for dead may still be calling. Looking first is not enough: let the engine's \
     unique names, its own tokens or an exclusive file decide between two creates.",
);
pub(super) const TAGS: Rule = (
    "what was created is listed with its tags",
    "Owner, name, attempt, operation and spec hash are written in the create call itself and read back by \
     listings, unchanged: they are all that tells whose an object is.",
);
pub(super) const SCOPE: Rule = (
    "a listing is scoped to its owner",
    "Two states share an account. Filter by the owner's tag, and make the owner part of what a delete looks \
     for.",
);
pub(super) const WHOLE: Rule = (
    "a listing is whole over all its pages",
    "A worker that is missing from a complete listing counts as gone and is replaced. Return every page, each \
     worker once, or say that the listing is not complete.",
);
pub(super) const IN_PLACE: Rule = (
    "labels and tags change in place",
    "`in_place` says that this provider can. Set exactly what is asked for, keep the object, and take the same \
     update twice.",
);
pub(super) const DELETE_TWICE: Rule = (
    "deleting twice is fine, and so is deleting nothing",
    "Deletes are repeated until somebody sees that nothing is left. What is gone already is a success.",
);
pub(super) const NEXT_ATTEMPT: Rule = (
    "a deleted worker can be tried again under its name",
    "A worker that did not get well is deleted and created anew with a higher attempt. The name has to be free \
     by then, and a late delete of the attempt before must not reach it.",
);
pub(super) const OTHER_ID: Rule = (
    "a delete that names another id leaves the worker alone",
    "An id in the request means that very object. Compare it before anything is deleted by name.",
);
pub(super) const RESET: Rule = (
    "a reset worker keeps its id and its tags",
    "`resets` says that this provider can. The worker stays in listings meanwhile and keeps its id: another id \
     would be a worker that nobody knows.",
);
pub(super) const ABANDONED_RESET: Rule = (
    "a reset is repeated when its caller is gone",
    "A reset that was cut off is asked for again. It has to succeed from wherever the first one stopped.",
);
pub(super) const NOT_FOUND: Rule = (
    "what does not exist is not found",
    "`not_found` is the proof that a worker is gone; any other error leaves it open, and the run waits.",
);
pub(super) const INVALID: Rule = (
    "a spec that cannot succeed is invalid, and leaves nothing",
    "Answer `invalid_spec`: nothing else stops a run from trying again. Take back what was made before the \
     mistake was found.",
);
pub(super) const LOST_ANSWER: Rule = (
    "a lost answer is an unknown outcome",
    "After a timeout or a broken connection the object may exist. Answer `unknown_outcome`; every other error \
     promises that nothing happened.",
);
pub(super) const INCOMPLETE: Rule = (
    "a listing says when it does not see everything",
    "Set `complete` to false when a zone, a host or a page could not be read: workers that cannot be seen \
     would be replaced otherwise.",
);
pub(super) const ABANDONED: Rule = (
    "an abandoned create is found, and can be repeated",
    "A caller can be killed at any moment of a create. What is left has to carry its tags from its first \
     moment on, and the same create has to finish it.",
);
pub(super) const HEALTH: Rule = (
    "a running worker becomes healthy, and a deleted one is gone",
    "`healthy` lets a new worker begin; `gone` has it replaced at once. What cannot be told is an error, never \
     `gone`.",
);
pub(super) const LATE: Rule = (
    "what a cut off create brings shows in time, and goes when it is deleted",
    "`settle` says how long a call that nobody heard of may still bring something. Whoever lists after that believes \
     that nothing more comes, and creates again. Start nothing that outlives the call but the worker itself.",
);
