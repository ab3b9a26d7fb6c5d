"""Models: encoders, recurrence, decoders, and the glossary of shapes.

These letters have one meaning in the whole package:

    B images   N captions per image   K beams   T caption tokens   V vocabulary   R hypotheses
    D encoder features   E word embedding   H hidden   P image positions   L layers   S image side

    images [B, 3, S, S]     pooled [B, D]     grid [B, P, D]     inputs, targets [B, T]
    logits [B, T, V]        log_probs [B, V]  context [B, D]     weights [B, P]   scores [B, K]

With a ``Packing``, N is the number of real tokens in a batch.
"""
