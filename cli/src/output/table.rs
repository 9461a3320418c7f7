//! Tables in the style of docker: no frames, a heading, columns separated by two spaces.

use comfy_table::{Table, presets};
use sandboxvm_manager::one_line;

/// Renders `rows` under `heading` without trailing spaces. Cells are escaped to one line each, since they may contain text
/// from a guest or VMM.
pub(crate) fn render<const N: usize>(heading: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    let rows = rows.into_iter().map(|row| row.map(|cell| one_line(&cell)));
    table.load_preset(presets::NOTHING).set_header(heading).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let text = super::render(["ID", "STATE"], [["abcdefgh".into(), "running".into()]]);
        assert_eq!(text, "ID        STATE\nabcdefgh  running\n");
    }

    #[test]
    fn cells_are_escaped_and_take_one_line() {
        let text = super::render(["ID", "STATE"], [["a".into(), "b\nsandboxvm: c\x1b[2J".into()]]);
        assert_eq!(text, "ID  STATE\na   b\\nsandboxvm: c\\u{1b}[2J\n");
    }
}
