//! Modules made by hand, byte for byte: what a compiler with the SDK would never produce.

use anyhow::Result;
use wasm_encoder::{
    CodeSection, ConstExpr, CustomSection, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, GlobalType, ImportSection, MemorySection, MemoryType, Module,
    TypeSection, ValType,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

use crate::build;

/// Subject of the one handler that these modules announce.
pub const SUBJECT: &str = "plain.>";

/// An interface that no node links.
pub const UNKNOWN_IMPORT: &str = "acme:magic/spell@1.0.0";

/// A core module that answers every delivery with ok, and carries wit-bindgen's section.
///
/// # Errors
/// The contract cannot be read.
pub fn core_with_section() -> Result<Vec<u8>> {
    let (resolve, world) = world(false)?;
    let mut module = core(false);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}

/// The same module without the section: nothing says what it is.
pub fn core_without_section() -> Vec<u8> {
    core(false)
}

/// A component that imports [`UNKNOWN_IMPORT`].
///
/// # Errors
/// The contract cannot be read.
pub fn unknown_import() -> Result<Vec<u8>> {
    let (resolve, world) = world(true)?;
    let mut module = core(true);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    encode(&module)
}

/// The component that [`core_with_section`] becomes.
///
/// # Errors
/// The contract cannot be read.
pub fn component() -> Result<Vec<u8>> {
    encode(&core_with_section()?)
}

/// A component of which the second half is missing.
///
/// # Errors
/// The contract cannot be read.
pub fn truncated() -> Result<Vec<u8>> {
    let mut bytes = component()?;
    bytes.truncate(bytes.len() / 2);
    Ok(bytes)
}

fn encode(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default()
        .validate(true)
        .module(module)?
        .encode()
}

/// The world that a module is of: the contract's export, with or without the unknown import.
fn world(unknown: bool) -> Result<(Resolve, WorldId)> {
    let mut resolve = Resolve::default();
    resolve.push_dir(build::root()?.join("sdk/wit"))?;
    resolve.push_str(
        "acme.wit",
        "package acme:magic@1.0.0;\ninterface spell { cast: func(); }\n",
    )?;
    let import = if unknown {
        format!("import {UNKNOWN_IMPORT};")
    } else {
        String::new()
    };
    let package = resolve.push_str(
        "guest.wit",
        &format!(
            "package test:guest;\nworld guest {{ {import}\nexport pelton:function/handler@0.1.0; }}\n"
        ),
    )?;
    let world = resolve.select_world(&[package], Some("guest"))?;
    Ok((resolve, world))
}

/// Exports `handle`, which returns a pointer to zeroed memory: the `ok` of its result. Arguments are put one behind
/// the other, and forgotten when it returns.
fn core(unknown: bool) -> Vec<u8> {
    let imported = u32::from(unknown);
    let mut types = TypeSection::new();
    types.ty().function([], []);
    types.ty().function([ValType::I32], [ValType::I32]);
    types.ty().function([ValType::I32; 4], [ValType::I32]);

    let mut imports = ImportSection::new();
    if unknown {
        imports.import(UNKNOWN_IMPORT, "cast", EntityType::Function(0));
    }

    let mut functions = FunctionSection::new();
    functions.function(1).function(2);

    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 64,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });

    let mut globals = GlobalSection::new();
    let next_free = GlobalType {
        val_type: ValType::I32,
        mutable: true,
        shared: false,
    };
    globals.global(next_free, &ConstExpr::i32_const(4096));

    let mut exports = ExportSection::new();
    exports
        .export("memory", ExportKind::Memory, 0)
        .export(
            "pelton:function/handler@0.1.0#handle",
            ExportKind::Func,
            imported,
        )
        .export("cabi_realloc", ExportKind::Func, imported + 1);

    let announced = format!("{{\"handler\":\"plain\",\"subject\":\"{SUBJECT}\"}}\n");
    let mut module = Module::new();
    module.section(&types);
    if unknown {
        module.section(&imports);
    }
    module
        .section(&functions)
        .section(&memories)
        .section(&globals)
        .section(&exports)
        .section(&code(unknown))
        .section(&CustomSection {
            name: "pelton:handlers".into(),
            data: announced.as_bytes().into(),
        });
    module.finish()
}

fn code(unknown: bool) -> CodeSection {
    let mut handle = Function::new([]);
    let mut body = handle.instructions();
    if unknown {
        body.call(0);
    }
    body.i32_const(4096).global_set(0).i32_const(1024).end();

    // The next multiple of 16, then further by the size asked for.
    let mut realloc = Function::new([(1, ValType::I32)]);
    realloc
        .instructions()
        .global_get(0)
        .i32_const(15)
        .i32_add()
        .i32_const(-16)
        .i32_and()
        .local_tee(4)
        .local_get(3)
        .i32_add()
        .global_set(0)
        .local_get(4)
        .end();

    let mut code = CodeSection::new();
    code.function(&handle).function(&realloc);
    code
}
