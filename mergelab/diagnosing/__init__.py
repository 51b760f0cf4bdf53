"""What is in a file of an adapter, and what is wrong with it: `doctor`.

From the bottom up:

    diagnosis   what is found, and how it is shown
    specimen    the file: as it lies there, as an adapter, and what was measured on it
    facts       what it is
    checks      what is wrong with it
    doctor      the two tables, one after the other
"""

from mergelab.diagnosing.diagnosis import Diagnosis, Finding
from mergelab.diagnosing.doctor import doctor

__all__ = ["Diagnosis", "Finding", "doctor"]
