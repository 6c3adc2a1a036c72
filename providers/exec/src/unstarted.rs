//! Why an executable could not be started, in words for whoever wrote its provider's block.
//!
//! The kernel says "no such file" of a missing executable, of a missing interpreter and of a missing folder alike: which
//! of them it is, is looked for here. Reads the file system, and changes nothing.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// How much of a script's first line is read, in bytes: the kernel reads no more.
const FIRST_LINE: u64 = 256;

/// Explains the error of starting `program` in `directory` with this `PATH`.
pub(crate) fn explained(
    program: &str,
    directory: Option<&Path>,
    search: Option<&str>,
    error: &io::Error,
) -> String {
    let folder = directory.unwrap_or(Path::new("."));
    if folder.is_file() {
        return format!("its `directory` {} is a file, and no folder", folder.display());
    }
    if !folder.is_dir() {
        return format!(
            "its `directory` {} is not there; without `directory` it is the one where pool runs",
            folder.display()
        );
    }
    if !program.contains('/') {
        return unfound(program, folder, search, error);
    }
    let path = folder.join(program);
    let shown = path.display();
    let Ok(found) = path.metadata() else {
        return match error.kind() {
            io::ErrorKind::PermissionDenied => format!("{shown} may not be looked at: {error}"),
            _ if path.starts_with(folder) => format!(
                "{shown} is not there; paths count from `directory`, which is {}",
                folder.display()
            ),
            _ => format!("{shown} is not there"),
        };
    };
    if found.is_dir() {
        return format!("{shown} is a folder");
    }
    if found.permissions().mode() & 0o111 == 0 {
        return format!("{shown} is not executable; make it so with: chmod +x {shown}");
    }
    match (error.kind(), interpreter(&path)) {
        (io::ErrorKind::NotFound, Some(interpreter)) if interpreter.ends_with('\r') => format!(
            "{shown} has a carriage return at the end of its first line; save it with Unix line ends"
        ),
        (io::ErrorKind::NotFound, Some(interpreter)) => {
            format!(
                "{shown} is there, but its interpreter {interpreter} is not: mend its first line, or install it"
            )
        }
        (io::ErrorKind::NotFound, None) => {
            format!(
                "{shown} is there, but the loader that it asks for is not: it was built for another system"
            )
        }
        _ if error.raw_os_error() == Some(NO_FORMAT) => format!(
            "{shown} is no program of this machine, and no script: a script begins with a line such as #!/bin/sh"
        ),
        _ => format!("{shown}: {error}"),
    }
}

/// The number of "exec format error".
const NO_FORMAT: i32 = rustix::io::Errno::NOEXEC.raw_os_error();

/// Explains why a name was not found in `PATH`.
fn unfound(program: &str, folder: &Path, search: Option<&str>, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return format!("`{program}`: {error}");
    }
    // One that is there is missed for what it needs itself.
    let entries = search.unwrap_or_default().split(':').filter(|entry| !entry.is_empty());
    if let Some(found) = entries.map(|entry| Path::new(entry).join(program)).find(|it| it.is_file())
    {
        return explained(&found.display().to_string(), Some(folder), search, error);
    }
    let searched = search.unwrap_or("nothing");
    let beside = folder.join(program).is_file();
    let hint = if program.contains(' ') {
        let words: Vec<&str> = program.split_whitespace().collect();
        format!("; `command` is a list of words: [{}]", words.join(", "))
    } else if beside {
        format!("; the one in {} is written with a slash: ./{program}", folder.display())
    } else {
        String::new()
    };
    format!("`{program}` is not in PATH, which is {searched}{hint}")
}

/// Returns whether a script's first line ends as lines do on Windows: `env` looks for an interpreter of that name, then.
pub(crate) fn has_windows_lines(program: &Path) -> bool {
    let mut begin = Vec::new();
    let read = File::open(program).map(|file| file.take(FIRST_LINE).read_to_end(&mut begin));
    let line = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
    matches!(read, Ok(Ok(_))) && line.starts_with(b"#!") && line.ends_with(b"\r")
}

/// Returns the interpreter that the first line of a script names.
fn interpreter(path: &PathBuf) -> Option<String> {
    let mut begin = Vec::new();
    File::open(path).ok()?.take(FIRST_LINE).read_to_end(&mut begin).ok()?;
    let line = begin.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    let name = line.trim_start_matches([' ', '\t']).split([' ', '\t']).next()?;
    // Whether a name is one is for the kernel to say; the folder tells a missing one.
    (!name.is_empty() && fs::metadata(name).is_err()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found() -> io::Error {
        io::Error::from(io::ErrorKind::NotFound)
    }

    #[test]
    fn what_is_missing_is_told_from_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        write("plain", "#!/bin/sh\n", 0o644);
        write("lost", "#! /opt/none/python3 -u\n", 0o755);
        write("windows", "#!/bin/sh\r\n", 0o755);
        write("foreign", "\u{7f}ELF", 0o755);
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let no_format = io::Error::from_raw_os_error(NO_FORMAT);
        let missing = folder.path().join("missing");
        let here = Some(folder.path());
        for (program, directory, error, words) in [
            ("./none", here, not_found(), "none is not there; paths count from `directory`, which"),
            ("./none", Some(missing.as_path()), not_found(), "its `directory`"),
            ("./plain", here, denied(), "make it so with: chmod +x"),
            ("./lost", here, not_found(), "its interpreter /opt/none/python3 is not"),
            ("./windows", here, not_found(), "save it with Unix line ends"),
            ("./foreign", here, not_found(), "built for another system"),
            ("./foreign", here, no_format, "a script begins with a line such as #!/bin/sh"),
            ("plain", here, not_found(), "`plain` is not in PATH, which is /bin; the one in"),
            ("plain", here, not_found(), "is written with a slash: ./plain"),
            ("none", here, not_found(), "`none` is not in PATH, which is /bin"),
            (
                "lost",
                Some(folder.path().parent().unwrap()),
                not_found(),
                "its interpreter /opt/none/python3",
            ),
            ("python3 x.py", here, not_found(), "is a list of words: [python3, x.py]"),
            (".", here, denied(), "`.`"),
            ("./", here, denied(), "is a folder"),
        ] {
            let search = format!("/bin:{}", folder.path().display());
            let search = if program == "lost" { search.as_str() } else { "/bin" };
            let told = explained(program, directory, Some(search), &error);
            assert!(told.contains(words), "{program}: {told}");
        }
    }
}
