//! JSON pointers (RFC 6901), and the dotted paths that people read.

/// Writes `key` as one token of a pointer.
pub(crate) fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// Reads one token of a pointer.
pub(crate) fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

/// Writes a JSON pointer as people do: `pools[0].fixed_size`.
pub(crate) fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for token in pointer.split('/').skip(1) {
        let token = unescape(token);
        if !token.is_empty() && token.chars().all(|c| c.is_ascii_digit()) {
            path.push_str(&format!("[{token}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&token);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_read_as_paths() {
        assert_eq!(
            dotted("/pools/0/worker_config/labels/a~1b~0c"),
            "pools[0].worker_config.labels.a/b~c"
        );
        assert_eq!(dotted(""), "");
        assert_eq!(unescape(&escape("~1/")), "~1/");
    }
}
