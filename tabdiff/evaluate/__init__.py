"""Judge a model by what it returns: anomaly scores, synthetic rows, and one page that shows both.

    detection   do the scores put anomalies first? Measures and controls
    fidelity    does the synthetic table look like the real one?
    validity    could every synthetic cell have come from the real table?
    privacy     does the synthetic table give away real rows?
    utility     is the synthetic table good for training?
    page        one self-contained HTML page; charts draws its pictures

Pure functions of tables and arrays: nothing is read or written, and a seed fixes every result. They know
no model and no schema, so they judge other generators and detectors alike. Gradient-boosted trees use as
many threads as OMP_NUM_THREADS says.
"""
