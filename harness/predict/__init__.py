"""Which relocations the verifier will reach, foretold from a program's final instructions: `predicted`, never proven.

    program = link(obj, known)                   # final instructions and what is known before the load (program.py)
    prediction = predict(program, model)         # walk them as the verifier does (machine.py)
    prediction.liveness(relo_insn)

`values` is what a register may hold, `models` the verifiers there are, `compare` holds a prediction against the proof.
Pure: nothing here asks a kernel.
"""
