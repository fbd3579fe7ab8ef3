"""The prompts of LongBench's tasks, in this package's own words, asking for the same form of answer as LongBench's."""

PASSAGES = """\
Here are some passages and a question about them.

{context}

Answer the question from these passages, with the answer alone and no other words.

Question: {input}
Answer:"""
STORY = """\
Here is a story and a question about it.

{context}

Answer the question from the story in a short phrase, without explaining it.

Question: {input}
Answer:"""
ARTICLE = """\
Here is a scientific article and a question about it.

{context}

Answer the question from the article in a short phrase or one sentence, without explaining it. Answer a yes/no \
question with "yes" or "no". If the article does not tell, write "unanswerable".

Question: {input}
Answer:"""
TEXT = """\
Read this text.

{context}

Answer the question about the text briefly, with the answer alone.

Question: {input}
Answer:"""
REPORT = """\
Here is a report by a government agency.

{context}

Summarise the report on one page.

Summary:"""
MEETING = """\
Here is the transcript of a meeting.

{context}

Answer this request about the meeting in one or a few sentences.

Request: {input}
Answer:"""
NEWS = """\
Here are several news articles on one matter.

{context}

Summarise them together on one page.

Summary:"""
TEXT_ZH = (
    "请阅读下面的文章。\n\n{context}\n\n请根据文章用中文简短地回答问题，只写答案。\n\n问题：{input}\n答案："
)
PASSAGES_ZH = "请阅读下面的材料。\n\n{context}\n\n请根据材料回答问题。\n\n问题：{input}\n答案："
MEETING_ZH = "下面是一份会议记录。\n\n{context}\n\n请总结会议的主要内容。\n\n总结："
EXAMPLES = "Go on in the way of these examples.\n\n{context}\n{input}"
EXAMPLES_ZH = "请按照例子判断新闻的类别。\n\n{context}\n{input}"
COUNT = """\
Below are paragraphs, some of which stand there more than once.

{context}

How many different paragraphs are there? Answer with the number alone.

Answer:"""
FIND = """\
Below are 30 numbered paragraphs, and after them a summary of one of them.

{context}

Summary: {input}

Which paragraph is it a summary of? Answer in the form "Paragraph 1".

Answer:"""
FIND_ZH = (
    "下面是若干编号的段落，后面是其中一段的摘要。\n\n{context}\n\n摘要：{input}\n\n"
    "这是哪一段的摘要？请按“段落1”的格式回答。\n\n答案："
)
CODE = "Complete the code by its next line.\n\n{context}{input}"
