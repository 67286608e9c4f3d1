//! Looks into the eBPF object: its programs, and the DWARF that a release leaves out.

use anyhow::{Context as _, Result};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind, build::elf,
};

/// Bytes of a BPF instruction.
const INSTRUCTION_BYTES: u64 = 8;

/// One program of the object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Name of its function.
    pub(crate) name: String,
    /// Section, which names its type and attach point.
    pub(crate) section: String,
    /// Instructions, without those of functions that it calls.
    pub(crate) instructions: u64,
}

/// The programs: global functions outside `.text`, which holds what they call.
pub(crate) fn programs(bytes: &[u8]) -> Result<Vec<Program>> {
    let file = object::File::parse(bytes).context("the eBPF object is not an ELF file")?;
    let mut programs = Vec::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || !symbol.is_global() {
            continue;
        }
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file
            .section_by_index(index)
            .context("a symbol has no section")?;
        let name = section.name().context("a section has no name")?;
        if section.kind() != SectionKind::Text || name == ".text" {
            continue;
        }
        programs.push(Program {
            name: symbol.name().context("a program has no name")?.to_owned(),
            section: name.to_owned(),
            instructions: symbol.size() / INSTRUCTION_BYTES,
        });
    }
    programs.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
    Ok(programs)
}

/// The object without its DWARF sections: the kernel and aya read BTF only, and DWARF is most of
/// the file.
pub(crate) fn without_dwarf(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut builder = elf::Builder::read(bytes).context("the eBPF object is not an ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.to_string();
        if name.starts_with(".debug_") || name.starts_with(".rel.debug_") {
            section.delete = true;
        }
    }
    // LLVM keeps section and symbol names in one table; the writer wants one for each.
    if !builder
        .sections
        .iter()
        .any(|section| matches!(section.data, elf::SectionData::SectionString))
    {
        let names = builder.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = object::elf::SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = elf::SectionData::SectionString;
    }
    builder.delete_orphans();
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("the eBPF object can't be written")?;
    Ok(stripped)
}
