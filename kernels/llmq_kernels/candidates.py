"""Which clippings a search for scales tries, by width: a table tuned on the weights of trained models."""

from __future__ import annotations

import functools

import numpy as np

from llmq_kernels.layout import Grid

__all__ = ["candidates"]
_SPEC={2:(.35,24),3:(.5,20),4:(.6,20),5:(.7,12),6:(.8,10),7:(.9,8),8:(.94,8),1:(.3,20)}

@functools.cache
def candidates(grid: Grid) -> np.ndarray:
    half=2.0**(grid.bits-1)
    lo,n=_SPEC[grid.bits]
    if grid.symmetric:
        if grid.narrow:
            c=np.linspace(lo,1,n)/(half-1)
        elif grid.signed:
            c=np.concatenate([-np.linspace(lo,1,n)/half, np.linspace(lo,1,n)/(half-1)])
        else:
            c=np.linspace(lo,1,n)/(half-1)
        out=np.stack([c,c],1)
    else:
        r=np.linspace(lo,1,max(4,n//3))
        a,b=np.meshgrid(r,r)
        out=np.stack([a.ravel(),b.ravel()],1)
    out=np.ascontiguousarray(out,np.float32)
    out.flags.writeable=False
    return out
