//! Small guests in WAT: each is a core module with the contract's description in its section, as wit-bindgen
//! leaves it, and a body for `handle` that misbehaves in one way.

use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const CONTRACT: &str = include_str!("../../../../sdk/wit/pelton.wit");
const LOGGING: &str = "package wasi:logging@0.1.0-draft;
interface logging {
  enum level { trace, debug, info, warn, error, critical }
  log: func(level: level, context: string, message: string);
}";
const CONFIG: &str = "package wasi:config@0.2.0-rc.1;
interface store {
  variant error { upstream(string), io(string) }
  get: func(key: string) -> result<option<string>, error>;
  get-all: func() -> result<list<tuple<string, string>>, error>;
}";
const HTTP: &str = "package wasi:http@0.2.3;
interface types { resource fields { constructor(); } }";
const FOREIGN: &str = "package acme:rockets@1.0.0;
interface launch { go: func(); }";

/// Where `handle` leaves its answer: 40 zero bytes are `ok`.
pub(crate) const ANSWER: i32 = 1024;
/// Where imported functions leave theirs.
const SCRATCH: i32 = 2048;
/// First byte of a string table.
const DATA: i32 = 4096;

/// A guest under construction.
pub(crate) struct Guest {
    imports: String,
    body: String,
    extra: String,
    data: Vec<u8>,
    world: &'static str,
    pages: u32,
}

impl Guest {
    /// One whose `handle` runs `body`, then returns ok.
    pub(crate) fn new(body: &str) -> Self {
        Self {
            imports: String::new(),
            body: body.to_owned(),
            extra: String::new(),
            data: Vec::new(),
            world: "",
            pages: 1,
        }
    }

    pub(crate) fn extra(mut self, wat: &str) -> Self {
        self.extra.push_str(wat);
        self
    }

    pub(crate) fn world(mut self, items: &'static str) -> Self {
        self.world = items;
        self
    }

    pub(crate) fn pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    pub(crate) fn import(self, interface: &str, name: &str, params: &str) -> Self {
        let short = name.replace('-', "_");
        self.import_renamed(interface, name, &short, params)
    }

    pub(crate) fn import_renamed(
        mut self,
        interface: &str,
        name: &str,
        short: &str,
        params: &str,
    ) -> Self {
        self.imports.push_str(&format!(
            "(import \"{interface}\" \"{name}\" (func ${short} (param {params})))\n"
        ));
        self
    }

    /// An import as it stands.
    pub(crate) fn raw_import(mut self, wat: &str) -> Self {
        self.imports.push_str(wat);
        self
    }

    /// A function without parameters that returns one word.
    pub(crate) fn import_result(mut self, interface: &str, name: &str) -> Self {
        self.imports.push_str(&format!(
            "(import \"{interface}\" \"{name}\" (func (result i32)))\n"
        ));
        self
    }

    pub(crate) fn state(self) -> Self {
        self.import("pelton:function/state@0.1.0", "get", "i32 i32 i32")
            .import("pelton:function/state@0.1.0", "set", "i32 i32 i32 i32 i32")
    }

    pub(crate) fn events(self) -> Self {
        self.import("pelton:function/events@0.1.0", "emit", "i32 i32")
    }

    pub(crate) fn logging(self) -> Self {
        self.import(
            "wasi:logging/logging@0.1.0-draft",
            "log",
            "i32 i32 i32 i32 i32",
        )
    }

    /// Keeps a string in the guest's memory; gives the two constants that name it.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let at = DATA as usize + self.data.len();
        self.data.extend_from_slice(text.as_bytes());
        format!("(i32.const {at}) (i32.const {})", text.len())
    }

    /// Adds to the body.
    pub(crate) fn then(&mut self, wat: &str) {
        self.body.push_str(wat);
    }

    /// `state.set`, answer ignored.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        let (key, value) = (self.text(key), self.text(value));
        self.then(&format!("(call $set {key} {value} (i32.const {SCRATCH}))"));
    }

    /// `state.get`, answer ignored.
    pub(crate) fn get(&mut self, key: &str) {
        let key = self.text(key);
        self.then(&format!("(call $get {key} (i32.const {SCRATCH}))"));
    }

    /// Returns the error of the last `set` or `emit`, if it was one, as the handler's own.
    pub(crate) fn pass_on(&mut self) {
        self.then(&format!(
            "(if (i32.load8_u (i32.const {SCRATCH})) (then (return (i32.const {SCRATCH}))))"
        ));
    }

    /// Returns an error.
    pub(crate) fn fail(&mut self, disposition: u8, delay: i64, code: &str, message: &str) {
        let (code_at, message_at) = (self.text(code), self.text(message));
        let store = |offset: i32, pair: &str| {
            let (at, len) = pair.split_once(") ").unwrap();
            format!(
                "(i32.store (i32.const {}) {at})) (i32.store (i32.const {}) {len})",
                ANSWER + offset,
                ANSWER + offset + 4
            )
        };
        let wat = format!(
            "(i32.store8 (i32.const {}) (i32.const 1)) (i32.store8 (i32.const {}) (i32.const {disposition}))
             (i64.store (i32.const {}) (i64.const {delay})) {} {}",
            ANSWER,
            ANSWER + 8,
            ANSWER + 16,
            store(24, &code_at),
            store(32, &message_at),
        );
        self.then(&wat);
    }

    /// `events.emit` of `len` bytes, answer in scratch.
    pub(crate) fn emit(&mut self, subject: &str, len: i32) {
        let subject = self.text(subject);
        let (at, size) = subject.split_once(") ").unwrap();
        let draft = 3000;
        self.then(&format!(
            "(i32.store (i32.const {draft}) {at})) (i32.store (i32.const {}) {size})
             (i32.store (i32.const {}) (i32.const {DATA})) (i32.store (i32.const {}) (i32.const {len}))
             (call $emit (i32.const {draft}) (i32.const {SCRATCH}))",
            draft + 4,
            draft + 84,
            draft + 88,
        ));
    }

    /// The core module, with its section.
    pub(crate) fn module(&self) -> Vec<u8> {
        let data: String = self.data.iter().map(|b| format!("\\{b:02x}")).collect();
        let text = format!(
            "(module {imports}
               (memory (export \"memory\") {pages})
               (global $free (mut i32) (i32.const 16384))
               (data (i32.const {DATA}) \"{data}\")
               (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32)
                 (local $at i32)
                 (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
                 (global.set $free (i32.add (local.get $at) (local.get 3)))
                 (block $fits
                   (br_if $fits (i32.le_u (global.get $free) (i32.mul (memory.size) (i32.const 65536))))
                   (br_if $fits (i32.ne (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get 3) (i32.const 65536))))))
                   unreachable)
                 (local.get $at))
               {extra}
               (func (export \"pelton:function/handler@0.1.0#handle\") (param $delivery i32) (result i32)
                 (global.set $free (i32.const 16384))
                 {body}
                 (i32.const {ANSWER})))",
            imports = self.imports,
            pages = self.pages,
            extra = self.extra,
            body = self.body,
        );
        let mut module = wat::parse_str(text).unwrap();
        let mut resolve = Resolve::default();
        for package in [LOGGING, CONFIG, HTTP, FOREIGN, CONTRACT] {
            resolve.push_str("test.wit", package).unwrap();
        }
        let package = resolve
            .push_str(
                "guest.wit",
                &format!(
                    "package test:guest; world guest {{ include pelton:function/function@0.1.0; {} }}",
                    self.world
                ),
            )
            .unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        module
    }

    /// The component.
    pub(crate) fn component(&self) -> Vec<u8> {
        crate::component::read(&self.module()).unwrap().bytes
    }
}
