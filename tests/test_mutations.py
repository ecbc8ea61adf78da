"""Do the tests notice when an invalidation is left out? Each case breaks a copy of the tree in one place and expects its tests to fail.

Every copy compiles its own engine, which takes a while; all of this is for slow runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TLB, CODEMAP, SYSTEM, RUNTIME = (f"engine/{name}.py" for name in ("tlb", "codemap", "system", "runtime"))
MMU = "kvm/arm64/mmu.py"
NOTHING = "pass"


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` where it stands `nth` (from 0) in a file of the package; `tests` have to fail, each of them."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    nth: int = 0

    def __str__(self) -> str:
        return self.name


MUTATIONS = (
    # Code
    Mutation("ic-ivau", CODEMAP, "reset_records(shared, records, first, line >> 2)", NOTHING,
             ("test_engine.py::test_code_that_a_guest_rewrites[ic ivau, x2]", "test_engine.py::test_code_that_another_vcpu_rewrites")),
    Mutation("ic-iallu", CODEMAP, "reset_records(shared, at + PAGE_HEADER, 0, PAGE_INSNS)", NOTHING,
             ("test_engine.py::test_code_that_a_guest_rewrites[ic iallu]", "test_engine.py::test_code_that_a_guest_rewrites[ic ialluis]")),
    Mutation("generation", CODEMAP, "store64(generation, load64(generation) + 1)", "store64(generation, load64(generation))",
             ("test_tier1.py::test_a_region_whose_code_changed_is_not_entered",)),
    Mutation("leave-regions", CODEMAP, "store8(shared.cpus[k] + POLL_LEAVE, 1)", NOTHING,
             ("test_tier1.py::test_a_region_that_another_vcpu_patches",)),
    Mutation("stencils", "engine/stencil/assemble.py", "if load64(a.records - PAGE_HEADER + PAGE_GENERATION) == a.generation:",
             "if done == 0:", ("test_stencils.py::test_code_that_changes_while_it_is_assembled_is_not_run",)),
    Mutation("code-arena", "engine/engine.py", "self.entry.flush_all(each.address)", NOTHING,
             ("test_engine.py::test_a_full_code_arena_starts_afresh",)),
    Mutation("drop-code", "kvm/arm64/vm.py", "self.machine.engine.drop_code(start, slot.hva + slot.size - start)", NOTHING,
             ("test_kvm_machine.py::test_memory_that_holds_other_code",)),
    # Break before make, by address
    Mutation("tlbi-va", TLB, "drop_data(level, first, last)", NOTHING, ("test_tlb.py::test_tlbi_of_a_changed_page[ldr-TLBI VAE1]",
             "test_tlb.py::test_tlbi_of_a_changed_page[ldr-TLBI VAALE1]", "test_tlb_el2.py::test_tlbi_of_a_page_of_el2[TLBI VAE2]")),
    Mutation("tlbi-va-code", TLB, "drop_code(code, first, last)", NOTHING, ("test_tlb.py::test_tlbi_of_changed_code[TLBI VAE1]",)),
    Mutation("tlbi-va-bank", TLB, "drop_data(bank.data, first, last)", NOTHING,
             ("test_tlb.py::test_tlbi_of_an_address_space_that_is_not_selected[TLBI VAE1]",)),
    Mutation("tlbi-block", TLB, "        note_size(contents, va >> 12 & FRAME, info >> INFO_SIZE_SHIFT)", "        pass",
             ("test_tlb.py::test_a_block_goes_by_any_of_its_addresses[tlbi vae1, x8-12288]",)),
    Mutation("tlbi-range", SYSTEM, "min(base + pages - 1, u64(FRAME))", "base", ("test_tlb.py::test_a_range_reaches_its_last_page[20]",)),
    Mutation("tlbi-tables", TLB, "forget_tables_of(cpu.walks, first, last)", NOTHING,
             ("test_tlb.py::test_a_table_that_is_taken_away[tlbi vae1, x8]",)),
    Mutation("region-chases", "engine/tier1/emit.py", "yield from forget(self._chases)", "yield from ()",
             ("test_tier1.py::test_a_page_that_is_taken_away_while_a_region_waits[a list-sums1]",)),
    # ASIDs
    Mutation("tlbi-asid", TLB, "drop_nonglobal(level)", NOTHING, ("test_tlb.py::test_tlbi_of_a_changed_page[ldr-TLBI ASIDE1]",)),
    Mutation("tlbi-asid-bank", TLB, "elif mine or scope != ASID:", "elif scope != ASID:",
             ("test_tlb.py::test_tlbi_of_an_address_space_that_is_not_selected[TLBI ASIDE1]",)),
    Mutation("new-asid", TLB, "drop_nonglobal(cpu.levels[level])", NOTHING, ("test_tlb.py::test_more_address_spaces_than_banks[ldr]",)),
    Mutation("new-asid-bank", TLB, "empty_data(bank.data)", NOTHING, ("test_tlb.py::test_more_address_spaces_than_banks[ldtr]",)),
    # Everything, and stage 2
    Mutation("tlbi-all", TLB, "            empty_data(level)", "            pass",
             ("test_tlb.py::test_tlbi_of_a_changed_page[ldr-TLBI VMALLE1]", "test_tlb_el2.py::test_tlbi_of_a_page_of_el2[TLBI ALLE2]",
              "test_tlb_el2.py::test_tlbi_of_a_page_of_stage_2[TLBI IPAS2E1]")),
    Mutation("tlbi-all-bank", TLB, "empty_data(bank.data)", NOTHING,
             ("test_tlb.py::test_tlbi_of_a_changed_page[ldtr-TLBI VMALLE1]",), nth=1),
    Mutation("tlbi-all-code", TLB, "        empty_code(code)", "        pass", ("test_tlb.py::test_tlbi_of_changed_code[TLBI VMALLE1]",)),
    Mutation("tlbi-all-tables", TLB, "        forget_tables(cpu.walks)", "        pass",
             ("test_tlb.py::test_a_table_that_is_taken_away[tlbi vmalle1]",)),
    Mutation("tlbi-stage2", TLB, "        forget_stage2(cpu.walks)", "        pass",
             ("test_tlb_el2.py::test_tlbi_of_a_page_of_stage_2[TLBI IPAS2E1]",
              "test_tlb_el2.py::test_a_vmid_that_serves_another_vm")),
    Mutation("alle1", TLB, "        flush_all(cpu)\n        return", "        return",
             ("test_tlb_el2.py::test_tlbi_of_a_page_of_stage_2[TLBI ALLE1]",)),
    Mutation("new-vmid", TLB, "both = changed(cpu, 5, cpu.sysreg[VTTBR_EL2.slot]) or both", NOTHING,
             ("test_tlb_el2.py::test_more_vms_than_banks[ldr]",)),
    Mutation("journal", TLB, "entry = tlb.entries[tlb.contents.journal[n]]", "entry = tlb.entries[tlb.contents.journal[0]]",
             ("test_tlb.py::test_the_last_of_many_pages[tlbi vmalle1-100]",)),
    Mutation("chunks", TLB, "contents.used |= u64(1) << index // chunk", "contents.used |= u64(1)",
             ("test_tlb.py::test_the_last_of_many_pages[tlbi vmalle1-356]",)),
    Mutation("controls", SYSTEM, "follow_controls(cpu)", NOTHING, ("test_tlb.py::test_controls_that_translation_depends_on",)),
    # Other vCPUs
    Mutation("broadcast", SYSTEM, "broadcast(cpu, Ptr[Shared](cpu.shared), what, first, last)", NOTHING,
             ("test_tlb.py::test_a_broadcast_reaches_a_running_vcpu[TLBI VAE1IS]",
              "test_tlb_el2.py::test_a_broadcast_of_stage_2_reaches_a_running_vcpu[TLBI IPAS2E1IS]")),
    Mutation("dsb", SYSTEM, "wait_sync(cpu, Ptr[Shared](cpu.shared))", NOTHING,
             ("test_engine.py::test_a_broadcast_tlbi_reaches_a_running_vcpu",)),
    Mutation("before-running", RUNTIME, "    if cpu.poll_sync != 0:\n        serve_sync(cpu)", "    cpu.poll_sync = 0",
             ("test_tlb.py::test_a_page_that_changed_while_a_vcpu_stood_still",), nth=1),
    # The hypervisor's own
    Mutation("unmap", MMU, "        if self.tables.unmap(start, end):\n            self._flush()", "        self.tables.unmap(start, end)",
             ("test_kvm_machine.py::test_deleted_memory_is_gone_for_a_running_guest",)),
    Mutation("write-protect", MMU, "                self._flush()", "                pass",
             ("test_kvm_machine.py::test_dirty_log_sees_stores",), nth=1),
)  # fmt: skip


def mutate(tree: Path, m: Mutation) -> None:
    """Change the tree; fails if the text is not there (any more)."""
    path = tree / "trapline" / m.file
    parts = path.read_text().split(m.old)
    assert len(parts) > m.nth + 1, f"{m.file} has no {m.old!r}: the table in this file is out of date"
    path.write_text(m.old.join(parts[: m.nth + 1]) + m.new + m.old.join(parts[m.nth + 1 :]))


def test_the_table_is_up_to_date(tmp_path: Path) -> None:
    for m in MUTATIONS:
        target = tmp_path / "trapline" / m.file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "trapline" / m.file, target)
        mutate(tmp_path, m)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("m", MUTATIONS, ids=str)
def test_an_invalidation_that_is_left_out(m: Mutation, tmp_path: Path) -> None:
    for name in ("trapline", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    mutate(tmp_path, m)
    # Without a profiler: a region that happens to be made of new code would hide that the old code was not forgotten.
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TRAPLINE_TIER1": "0"}
    # What a slow host takes to compile the engine must not be mistaken for a guest that is stuck.
    subprocess.run([sys.executable, "-c", "from trapline.engine.engine import Engine; Engine()"], cwd=tmp_path, env=environment, check=True)
    for test in m.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "120", f"tests/{test}"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1, f"{test} did not notice\n{done.stdout[-1500:]}{done.stderr[-500:]}"
        assert "AssertionError" in done.stdout or "Timeout" in done.stdout or "assert " in done.stdout, done.stdout[-3000:]
