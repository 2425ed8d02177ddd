"""Write the measured tables of ``benchmarks/results/resofilter_*.json`` into docs/resofilter.md.

python benchmarks/resofilter_card.py            # rewrite each table between its two markers
python benchmarks/resofilter_card.py --check    # exit 1 if the card is not up to date
"""

from __future__ import annotations

import sys

import card_tables
from measured_tables import resofilter_memory, resofilter_speed

SIZES = ("llama", "smollm2")


def main() -> int:
    tables = card_tables.of_results({f"resofilter_speed_{s}": resofilter_speed for s in SIZES})
    memory = card_tables.of_results({f"resofilter_speed_{s}": resofilter_memory for s in SIZES})
    tables |= {name.replace("speed", "memory"): table for name, table in memory.items()}
    return card_tables.main("docs/resofilter.md", tables, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
