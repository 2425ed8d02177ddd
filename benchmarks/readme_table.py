"""Write the measured figures of ``benchmarks/results/*.json`` into the README.

python benchmarks/readme_table.py            # rewrite the tables between their markers
python benchmarks/readme_table.py --check    # exit 1 if the README is not up to date
"""

from __future__ import annotations

import sys

import card_tables
import measured_tables

# The results of which each table is made, and what makes it.
TABLES = {
    "callback_overhead": measured_tables.callback_overhead,
    "monitor_overhead": measured_tables.monitor_overhead,
    "batched_sweep": measured_tables.batched_sweep,
    "resofilter_speed_llama": measured_tables.resofilter_speed,
    "resofilter_speed_smollm2": measured_tables.resofilter_speed,
    "resofilter_exactness": measured_tables.resofilter_exactness,
    "scen_speed": measured_tables.scen_speed,
    "scen_overhead": measured_tables.scen_overhead,
    "lmcd_speed": measured_tables.lmcd_speed,
}


def main() -> int:
    return card_tables.main("README.md", card_tables.of_results(TABLES), sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
