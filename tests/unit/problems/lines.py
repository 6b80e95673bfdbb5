"""Lines of ratings, as files of MovieLens have them."""

# user, item, rating, timestamp
ROWS = ((3, 20, 5, 881250949), (1, 10, 3, 891717742), (3, 10, 1, 878887116))


def tab_lines(*rows: tuple[object, ...]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)
