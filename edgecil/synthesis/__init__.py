"""Images made from a trained network alone: no data, no method.

* :mod:`~edgecil.synthesis.statistics`: what batch norms see, by hooks that live for one pass;
* :mod:`~edgecil.synthesis.objective`: what is asked of images, as weighted losses;
* :mod:`~edgecil.synthesis.generator` and :mod:`~edgecil.synthesis.pixels`: where images come
  from, a generator or the pixels themselves;
* :mod:`~edgecil.synthesis.training`: one step of either, a loop, and what to do on collapse;
* :mod:`~edgecil.synthesis.dreams`: all of it as one function that returns uint8 images.
"""
